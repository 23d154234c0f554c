"""Metrics of other estimators on the same groups, to compare with the advantages in use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.estimators.arguments import GroupK, min_valid
from maxpo.estimators.mixing import DEFAULTS, Parameters, estimator, nonzero
from maxpo.plugins import short_name


def advantage_metrics(
    advantages: Float[Tensor, "G N"], rewards: Float[Tensor, "G N"], valid: Bool[Tensor, "G N"]
) -> dict[str, float]:
    """Return mean, second moment and share of non-zero advantages among the valid samples."""
    a = advantages[valid].double()
    count = max(1, a.numel())
    return {
        "mean": float(a.sum()) / count,
        "second_moment": float(a.square().sum()) / count,
        "nonzero": int(nonzero(advantages, rewards, valid).sum()) / count,
    }


def shadow_metrics(
    names: Sequence[str],
    advantages: Float[Tensor, "G N"],
    rewards: Float[Tensor, "G N"],
    k: GroupK,
    valid: Bool[Tensor, "G N"],
    parameters: Parameters = DEFAULTS,
) -> dict[str, float]:
    """Return `advantage_metrics` of each named estimator and its correlation with the advantages in use.

    Groups that are too small for an estimator do not count for that estimator. The correlation runs over the valid
    samples and is left out if one of the two estimators does not vary. An estimator that refuses these rewards or this
    K has `shadow/{name}/refused` = 1 and no other metric, since a run must not end because of a metric.
    """
    metrics: dict[str, float] = {}
    for name in names:
        shown = short_name(name)
        try:
            other = estimator(name, parameters)(rewards, k, valid)
        except ValueError:
            metrics[f"shadow/{shown}/refused"] = 1.0
            continue
        heard = valid & (valid.sum(1, keepdim=True) >= torch.as_tensor(min_valid(name, k)).view(-1, 1))
        values = advantage_metrics(other, rewards, heard) | {"refused": 0.0}
        both = torch.stack([other[heard], advantages[heard]]).double()
        signal = all(bool(nonzero(a, rewards, heard).any()) for a in (other, advantages))
        if signal and bool((both.std(1) > 0).all()):
            values["correlation"] = float(torch.corrcoef(both)[0, 1])
        metrics |= {f"shadow/{shown}/{key}": value for key, value in values.items()}
    return metrics

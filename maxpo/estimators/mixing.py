"""Estimators by name, mixtures of two estimators, and the test for a non-zero advantage."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.estimators.advantages import ADVANTAGES, AdvantageFn, maxpo
from maxpo.estimators.arguments import GroupK, Mask


def estimator(name: str, objective: str = "max") -> AdvantageFn:
    """Return the estimator of this name. `maxpo` is bound to the objective, and the others ignore the objective."""
    return partial(maxpo, objective=objective) if name == "maxpo" else ADVANTAGES[name]


def mixed(
    name: str,
    rewards: Float[Tensor, "G N"],
    k: GroupK,
    valid: Mask = None,
    *,
    objective: str = "max",
    mix_with: str | None = None,
    mix_weight: float = 0.0,
) -> Float[Tensor, "G N"]:
    """Return (1 - w) times the advantages of estimator `name` plus w times the advantages of estimator `mix_with`.

    Args:
        name: Key of `ADVANTAGES`.
        rewards: [G, N] rewards of both estimators.
        k: K of both estimators.
        valid: Mask of both estimators.
        objective: Objective of `maxpo`, as either of the two. The other estimators know `max` only.
        mix_with: Key of `ADVANTAGES`. None: use `name` only.
        mix_weight: Weight w, 0 .. 1.
    """
    advantages = estimator(name, objective)(rewards, k, valid)
    if mix_with is None:
        return advantages
    return torch.lerp(advantages, estimator(mix_with, objective)(rewards, k, valid), mix_weight)


def nonzero(
    advantages: Float[Tensor, "G N"], rewards: Float[Tensor, "G N"], valid: Bool[Tensor, "G N"]
) -> Bool[Tensor, "G N"]:
    """Return True where an advantage exceeds rounding: 1e-10, or 1e-10 times the spread for a spread below 1.

    Without spread only an estimator that is not centred can have signal. The scale is then the size of the reward.
    """
    high = rewards.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    spread = high - rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    scale = torch.where(spread > 0, spread, high.abs()).clamp(max=1.0)
    return valid & (advantages.abs() > 1e-10 * scale)

"""Estimators by name, mixtures of two, and which advantages say anything."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.estimators.advantages import ADVANTAGES, AdvantageFn, maxpo
from maxpo.estimators.arguments import GroupK, Mask


def estimator(name: str, objective: str = "max") -> AdvantageFn:
    """The estimator of this name; `maxpo` for that objective."""
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
    """(1 - w) times estimator `name` plus w times estimator `mix_with`, `objective` with `maxpo` wherever it stands.

    Args:
        name: one of `ADVANTAGES`.
        rewards: as the estimators take them.
        k: K of both.
        valid: likewise.
        objective: what `maxpo` optimises; the others know max only.
        mix_with: the other estimator; None: `name` alone.
        mix_weight: w, 0 .. 1.
    """
    advantages = estimator(name, objective)(rewards, k, valid)
    if mix_with is None:
        return advantages
    return torch.lerp(advantages, estimator(mix_with, objective)(rewards, k, valid), mix_weight)


def nonzero(
    advantages: Float[Tensor, "G N"], rewards: Float[Tensor, "G N"], valid: Bool[Tensor, "G N"]
) -> Bool[Tensor, "G N"]:
    """Which advantages are more than what rounding leaves: 1e-10, or 1e-10 of the spread of small rewards.

    Without spread only an estimator that is not centred can have signal, of the size of the reward itself.
    """
    high = rewards.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    spread = high - rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    scale = torch.where(spread > 0, spread, high.abs()).clamp(max=1.0)
    return valid & (advantages.abs() > 1e-10 * scale)

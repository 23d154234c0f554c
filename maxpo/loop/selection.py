"""What scored groups say before the learner gets them: which can teach anything, and figures for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maxpo.batches.samples import reward_matrix
from maxpo.config import AlgorithmConfig
from maxpo.estimators.arguments import min_valid
from maxpo.estimators.mixing import mixed, nonzero
from maxpo.types import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A scored group with what the estimator makes of it."""

    scored: ScoredGroup
    k: int
    advantages: tuple[float, ...]
    """[N], 0 where not valid."""
    enough: bool
    """It has enough valid samples."""
    signal: bool
    """Some of its advantages are not zero."""


def judge(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, ks: Sequence[int], weight: float) -> list[Judged]:
    """Advantages of each group, as the learner will compute them again, and whether they say anything.

    Raises:
        ValueError: the estimator does not take these rewards.
    """
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    k = torch.tensor(ks)
    need = torch.as_tensor(min_valid(algorithm.advantage, k))
    if algorithm.mix_with:
        need = torch.maximum(need, torch.as_tensor(min_valid(algorithm.mix_with, k)))
    advantages = mixed(
        algorithm.advantage,
        rewards,
        k,
        valid,
        objective=algorithm.objective,
        mix_with=algorithm.mix_with,
        mix_weight=weight,
    )
    enough = valid.sum(1) >= need
    signal = enough & nonzero(advantages, rewards, valid).any(1)
    return [
        Judged(scored=group, k=k_group, advantages=tuple(map(float, row)), enough=bool(e), signal=bool(s))
        for group, k_group, row, e, s in zip(groups, ks, advantages, enough, signal, strict=True)
    ]

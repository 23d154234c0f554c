"""Selection of the sampled groups and samples that have a training signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maxpo.batches.samples import reward_matrix
from maxpo.config import AlgorithmConfig
from maxpo.estimators.arguments import min_valid
from maxpo.estimators.mixing import mixed, nonzero
from maxpo.types import Mix, ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessedGroup:
    """A scored group with its K, its advantages and its signal."""

    scored: ScoredGroup
    k: int
    advantages: tuple[float, ...]
    """[N] advantages, 0 where a sample is not valid."""
    enough: bool
    """True if the group has enough valid samples for the estimator."""
    signal: tuple[bool, ...]
    """[N] True where the advantage is not zero; False everywhere in a group that is not `enough`."""

    @property
    def has_signal(self) -> bool:
        """True if any advantage is not zero."""
        return any(self.signal)


def assess(
    groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, ks: Sequence[int], mix: Mix
) -> list[AssessedGroup]:
    """Compute the advantages of each group on the CPU, and which samples have signal.

    The learner computes its advantages again, on its own device, and packs the samples that have signal here. So every
    rank packs the same samples, whatever the rounding of its device.

    Args:
        groups: G scored groups.
        algorithm: Estimator, objective and mixture.
        ks: [G] K of each group.
        mix: How the estimators are mixed.

    Raises:
        ValueError: The estimator does not accept these rewards.
    """
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    k = torch.tensor(ks)
    advantages = mixed(algorithm, mix, rewards, k, valid)
    need = torch.as_tensor(min_valid(algorithm.advantage, k))
    if algorithm.mix_with:
        need = torch.maximum(need, torch.as_tensor(min_valid(algorithm.mix_with, k)))
    enough = valid.sum(1) >= need
    signal = enough[:, None] & nonzero(advantages, rewards, valid)
    return [
        AssessedGroup(
            scored=group,
            k=k_group,
            advantages=tuple(map(float, row)),
            enough=bool(is_enough),
            signal=tuple(map(bool, row_signal)),
        )
        for group, k_group, row, is_enough, row_signal in zip(groups, ks, advantages, enough, signal, strict=True)
    ]

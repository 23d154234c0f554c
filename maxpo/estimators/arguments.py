"""Checks of the estimators' arguments, and the statistics that all estimators need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.estimators.names import BEYOND_K
from maxpo.estimators.order_statistics import Ranked, deviation, rank

GroupK = int | Int[Tensor, " G"]
"""K of all groups, or a tensor with the K of each group."""

Mask = Bool[Tensor, "G N"] | None
"""True where a sample is valid. None if all samples are valid."""


@overload
def min_valid(name: str, k: int) -> int: ...


@overload
def min_valid(name: str, k: GroupK) -> GroupK: ...


def min_valid(name: str, k: GroupK) -> GroupK:
    """Return the smallest number of valid samples for which estimator `name` gives a group advantages."""
    return k + BEYOND_K[name] if name in BEYOND_K else 2


@dataclass(frozen=True, slots=True)
class Groups:
    """Checked arguments of an estimator, in float64."""

    x: Float[Tensor, "G N"]
    """Rewards, 0 where a sample is not valid and in groups with too few valid samples."""
    valid: Mask
    """True at the valid samples, in groups with enough valid samples. None if all samples of all groups are valid."""
    n: Float[Tensor, "G 1"] | float
    """Valid size. In groups with too few samples the smallest size that suffices, so that no division is by 0."""
    k: Float[Tensor, "G 1"] | float
    """K as a factor in formulas."""
    k_index: GroupK
    """K as an integer, for the tables of `maxpo.estimators.order_statistics`."""
    base: Float[Tensor, "G 1"]
    """First valid reward of each group."""
    offset: Float[Tensor, "G 1"]
    """Mean of the valid rewards minus `base`. Exactly 0 for equal rewards, so that their deviations are exactly 0."""
    dtype: torch.dtype

    @property
    def mean(self) -> Float[Tensor, "G 1"]:
        """Mean of the valid rewards of each group."""
        return self.base + self.offset

    def centred(self) -> Float[Tensor, "G N"]:
        """Return the rewards minus the mean of their group, 0 where a sample is not valid."""
        centred = self.x - self.base - self.offset
        return centred if self.valid is None else centred.masked_fill_(~self.valid, 0.0)

    def ranked(self) -> Ranked:
        """Return the groups in ascending order."""
        return rank(self.x, self.valid)

    def deviation(self, objective: str) -> Float[Tensor, "G N"]:
        """Return in_i - rho. A common shift cancels in the difference, so centring first keeps the rewards' digits."""
        return deviation(rank(self.centred(), self.valid), self.k_index, objective)

    def finish(self, advantages: Tensor) -> Float[Tensor, "G N"]:
        """Set advantages of invalid samples to 0 and convert the result to the dtype of the rewards."""
        if self.valid is not None:
            advantages = advantages.masked_fill(~self.valid, 0.0)
        return advantages.to(self.dtype)


def prepare(name: str, rewards: Tensor, k: GroupK, valid: Mask, *, binary: bool = False) -> Groups:
    """Check the arguments of estimator `name` and compute the statistics of each group.

    Args:
        name: Key of `ADVANTAGES`.
        rewards: [G, N] rewards of the groups.
        k: K of all groups, or of each. Estimators outside `BEYOND_K` ignore K.
        valid: True where a sample is valid. None if all samples are valid.
        binary: True if the estimator's formula needs rewards of 0 and 1.

    Raises:
        ValueError: A shape, a dtype, K or a valid reward is outside the range of the estimator.
    """
    if rewards.ndim != 2 or not rewards.is_floating_point():
        raise ValueError(f"{name}: rewards must be a float tensor [G, N], not {rewards.dtype} {tuple(rewards.shape)}")
    groups, width = rewards.shape
    if groups < 1 or width < min_valid(name, 1):
        raise ValueError(f"{name}: groups need {min_valid(name, 1)} samples, but rewards are {tuple(rewards.shape)}")
    if valid is not None and (valid.shape != rewards.shape or valid.dtype != torch.bool):
        raise ValueError(f"{name}: valid must be bool {tuple(rewards.shape)}, not {valid.dtype} {tuple(valid.shape)}")
    if name not in BEYOND_K:
        k = 1
    k = _checked_k(name, k, groups, width)
    if valid is not None and bool(valid.all()):
        valid = None  # The arithmetic without a mask is several times faster.
    need = min_valid(name, k)
    x = rewards.double()
    # Sums run over the rewards minus one reward of the group: equal rewards then give exactly 0 at any offset.
    n: Tensor | float = float(width)
    base = x[:, :1]
    if valid is not None:
        # A group with too few valid samples counts as empty. Its n is raised only so that no formula divides by 0.
        n = valid.sum(1)
        valid = valid & (n >= need)[:, None]
        n = torch.maximum(n, torch.as_tensor(need, device=n.device)).double()[:, None]
        x = torch.where(valid, x, 0.0)
        base = x.gather(1, valid.long().argmax(1, keepdim=True))
    relative = x - base if valid is None else torch.where(valid, x - base, 0.0)
    offset = relative.sum(1, keepdim=True) / n
    # One NaN or infinity makes the offset of its group not finite, so this check covers all valid rewards.
    if not bool(torch.isfinite(offset).all()):
        raise ValueError(f"{name}: a valid reward is not finite")
    if binary and not bool(((x == 0) | (x == 1)).all()):
        other = x[(x != 0) & (x != 1)][0]
        raise ValueError(f"{name}: its formula is for rewards of 0 and 1, but there is a reward of {float(other):g}")
    return Groups(x, valid, n, k if isinstance(k, int) else k.double()[:, None], k, base, offset, rewards.dtype)


def _checked_k(name: str, k: GroupK, groups: int, width: int) -> GroupK:
    """Return K, as one number if all groups have the same.

    Raises:
        ValueError: A K is not an integer from 1 to the largest K of estimator `name`.
    """
    largest = width - BEYOND_K.get(name, 1)
    if not isinstance(k, int) and (k.shape != (groups,) or k.is_floating_point() or k.dtype == torch.bool):
        raise ValueError(f"{name}: k must be a whole number or integers [{groups}], not {k.dtype} {tuple(k.shape)}")
    low, high = (k, k) if isinstance(k, int) else (int(k.min()), int(k.max()))
    if low < 1 or high > largest:
        wrong = low if low < 1 else high
        raise ValueError(f"{name}: k = {wrong} with groups of N = {width}. Allowed is 1 <= k <= {largest}")
    return low if low == high else k

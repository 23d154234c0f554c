"""Order statistics of K-subsets, the arithmetic of every max@K estimator.

Notation of a group of n valid rewards, for a statistic T of K samples (`max` unless stated otherwise): `rho` is the
mean of T over all K-subsets, `in_i` the mean over the K-subsets that contain i, and `out_i` the mean over the K-subsets
that do not contain i. With ascending order statistics x_1 <= ... <= x_n and T = sum_j alpha_j * (j-th smallest), the
sample of rank p has

    in_(p) = sum_{m<p} a_m x_m + b_p x_p + sum_{m>p} c_m x_m
    rho    = mean_i in_i,    out_i = (n rho - K in_i) / (n - K)

    P(n, K; j, m) = C(m-1, j-1) C(n-m, K-j) / C(n, K)    rank m is the j-th smallest of a random K-subset
    a_m = sum_j alpha_j P(n-1, K-1; j, m)      b_m = (n/K) sum_j alpha_j P(n, K; j, m)
    c_m = sum_j alpha_(j+1) P(n-1, K-1; j, m-1)

so a group costs one sort and one running sum. Source: arXiv 2606.06096. The weights depend on (n, K, T) only, and are
float64 and cached per device. P is built from its mode outwards as a product of ratios of at most 1, and then divided
by the known sum. So nothing overflows and no digits are lost at any n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.estimators.objectives import rank_coefficients

_ROWS = 256
"""Number of rows of P in memory at a time, 8 MiB at n = 4096."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The valid rewards of each group in ascending order."""

    x: Float[Tensor, "G N"]
    """Rewards in float64. A group of n valid samples has its rewards in columns 0 .. n - 1, and 0 in the others."""
    order: Int[Tensor, "G N"]
    """Column of the sample at each rank."""
    sizes: Int[Tensor, " G"] | int
    """Valid size n of each group. An int if all groups have the same size."""

    def present(self, at_rank: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
        """Set the values per rank to 0 in the columns from n on."""
        if isinstance(self.sizes, int):
            return at_rank
        return torch.where(torch.arange(at_rank.shape[1], device=at_rank.device) < self.sizes[:, None], at_rank, 0.0)

    def unsort(self, at_rank: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
        """Convert values per rank to values per sample, 0 where a sample is not valid."""
        return torch.empty_like(at_rank).scatter_(1, self.order, self.present(at_rank))


def rank(rewards: Float[Tensor, "G N"], valid: Bool[Tensor, "G N"] | None = None) -> Ranked:
    """Sort each group. `rewards` must be finite where `valid` is True. None means that all samples are valid."""
    if valid is None:
        x, order = rewards.double().sort(dim=1)
        return Ranked(x, order, rewards.shape[1])
    # Infinity moves the invalid samples behind the valid ones. `present` then replaces each infinity by 0, since
    # 0 times infinity would be NaN in the weighted sums.
    x, order = rewards.double().masked_fill(~valid, torch.inf).sort(dim=1)
    ranked = Ranked(x, order, valid.sum(1))
    return replace(ranked, x=ranked.present(x))


def include_one(ranked: Ranked, k: int | Int[Tensor, " G"], objective: str = "max") -> Float[Tensor, "G N"]:
    """Return `in_i` of every sample in float64, 0 where the sample is not valid.

    Args:
        ranked: Sorted groups.
        k: K of all groups or of each, K >= 1. A group with n < K gets 0.
        objective: Statistic of K samples, as in `maxpo.estimators.objectives`.
    """
    relative, every = _include_one_but_for_a_constant(ranked, k, objective)
    return ranked.unsort(relative + (ranked.x * every).sum(1, keepdim=True))


def deviation(ranked: Ranked, k: int | Int[Tensor, " G"], objective: str = "max") -> Float[Tensor, "G N"]:
    """Return `in_i - rho` of every sample, which sums to 0 over each group. Takes the arguments of `include_one`."""
    # The constant sum_m c_m x_m is the same for all samples of a group, so subtracting the mean removes the constant,
    # and adding the constant first would only cost digits.
    at_rank, _ = _include_one_but_for_a_constant(ranked, k, objective)
    n = ranked.sizes if isinstance(ranked.sizes, int) else ranked.sizes.clamp(min=1)[:, None]
    # The second pass removes the mean that rounding leaves after the first, which K n / (n - K) would magnify.
    for _ in range(2):
        at_rank = ranked.present(at_rank - at_rank.sum(1, keepdim=True) / n)
    return ranked.unsort(at_rank)


def _include_one_but_for_a_constant(ranked: Ranked, k: int | Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Return `in_i` minus the constant sum_m c_m x_m by rank, and the weights c.

    sum_{m<=p} a x + sum_{m>p} c x = sum_{m<=p} (a - c) x + sum_m c x, so one running sum serves both sides.
    """
    own, running, every = _per_group(include_one_weights, ranked, k, objective)
    return ranked.present((ranked.x * running).cumsum(1).addcmul_(ranked.x, own)), every


def increments(ranked: Ranked, k: int | Int[Tensor, " G"]) -> Float[Tensor, "G N"]:
    """Return `in_i - sub_i` in float64, the gain of adding sample i to K - 1 others. Never negative for K > 1.

    sub_i is the mean of max(S) over the (K-1)-subsets without i. For K = 1, sub_i is 0 and the increment is the reward.
    For K > 1, the lowest reward of a group adds exactly 0. A group with n < K gets 0.
    """
    # Sample i gains x_i - x_m if m is the best of the others and ranks below i. Gaps to the lowest reward have the same
    # differences as the rewards, and give exactly 0 at the lowest rank.
    weight, below = _per_group(increment_weights, ranked, k)
    gap = ranked.x - ranked.x[:, :1]
    part = gap * weight
    # The exclusive running sum covers the ranks below i. Rounding may leave a tiny negative number, which is clamped.
    at_rank = (gap * below - (part.cumsum(1) - part)).clamp_(min=0)
    single = (k == 1) if isinstance(k, int) else (k == 1)[:, None]
    return ranked.unsort(at_rank + ranked.x * single)


@lru_cache(maxsize=1024)
def include_one_weights(n: int, k: int, objective: str, width: int, device: torch.device) -> Float[Tensor, "3 W"]:
    """Return the weights b - a, a - c and c of the module's formulas by rank, 0 from column n on and for n < K."""
    a, b, c = torch.zeros(3, width, dtype=torch.float64)
    alpha = torch.tensor(rank_coefficients(objective, k), dtype=torch.float64)
    if k <= n:
        b[:n] = n / k * _weighted_ranks(n, k, alpha)
        if k > 1:
            a[: n - 1] = _weighted_ranks(n - 1, k - 1, alpha[:-1])
            c[1:n] = _weighted_ranks(n - 1, k - 1, alpha[1:])
    return torch.stack([b - a, a - c, c]).to(device)


@lru_cache(maxsize=1024)
def increment_weights(n: int, k: int, width: int, device: torch.device) -> Float[Tensor, "2 W"]:
    """Return the weights of `increments` by rank.

    Row 0 is the probability that this rank is the best of K - 1 others, seen from any higher rank. Row 1 is the sum of
    row 0 over all lower ranks.
    """
    weight = torch.zeros(width, dtype=torch.float64)
    if 1 < k <= n:
        weight[: n - 1] = _weighted_ranks(n - 1, k - 1, torch.tensor([0.0] * (k - 2) + [1.0], dtype=torch.float64))
    return torch.stack([weight, weight.cumsum(0) - weight]).to(device)


def _weighted_ranks(n: int, k: int, alpha: Float[Tensor, " K"]) -> Float[Tensor, " n"]:
    """Return sum_j alpha_j P(n, K; j, m) for m = 1 .. n."""
    total = torch.zeros(n, dtype=torch.float64)
    m = torch.arange(1, n, dtype=torch.float64)
    # Only the rows j with a weight are computed: one for `max`.
    used = (torch.arange(len(alpha))[alpha != 0] + 1)[:, None]
    for first in range(0, len(used), _ROWS):
        j = used[first : first + _ROWS]
        # P(m + 1) / P(m) = m (n - m - K + j) / ((m - j + 1) (n - m)), which falls in m. The ratio is set to 1
        # outside the support.
        up, down = m * (n - m - k + j), (m - j + 1) * (n - m)
        inside = (m >= j) & (m < n - k + j)
        # Right of the mode the ratios are below 1 and are multiplied from left to right. Left of the mode the inverse
        # ratios are at most 1 and are multiplied from right to left. P is 1 at the mode until the division by the sum.
        falling = torch.where(inside & (up < down), up / down, 1.0)
        rising = torch.where(inside & (up >= down), down / up, 1.0)
        one = torch.ones(len(j), 1, dtype=torch.float64)
        p = torch.cat([one, falling.cumprod(1)], 1) * torch.cat([rising.flip(1).cumprod(1).flip(1), one], 1)
        ranks = torch.arange(1, n + 1)
        # The products mean nothing outside the support. Each row of P sums to 1, which gives the missing factor.
        p = torch.where((ranks >= j) & (ranks <= n - k + j), p, 0.0)
        total += alpha[j.squeeze(1) - 1] @ (p / p.sum(1, keepdim=True))
    return total


def _per_group(
    table: Callable[..., Tensor], ranked: Ranked, k: int | Tensor, *key: str
) -> tuple[Float[Tensor, "#G N"], ...]:
    """Return the weights of each group, or one row for all groups if size and K are equal everywhere.

    A table is looked up once per *different* pair of size and K, not per group.
    """
    groups, width = ranked.x.shape
    device = ranked.x.device
    if isinstance(ranked.sizes, int) and isinstance(k, int):
        return table(ranked.sizes, k, *key, width, device)[:, None].unbind(0)
    # One integer encodes each pair, so that a single `unique` finds the different pairs.
    sizes = torch.as_tensor(ranked.sizes, device=device).expand(groups)
    pairs = sizes * (width + 1) + torch.as_tensor(k, device=device)
    different, row = cast("tuple[Tensor, Tensor]", torch.unique(pairs, return_inverse=True))  # pyright: ignore
    tables = [table(*divmod(int(pair), width + 1), *key, width, device) for pair in different.cpu()]
    return torch.stack(tables, 1)[:, row].unbind(0)

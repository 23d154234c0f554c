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
    own, running, every = per_group(include_one_weights, ranked, k, objective)
    return ranked.present((ranked.x * running).cumsum(1).addcmul_(ranked.x, own)), every


def increments(ranked: Ranked, k: int | Int[Tensor, " G"], objective: str = "max") -> Float[Tensor, "G N"]:
    """Return `in_i - sub_i` in float64, the gain of adding sample i to K - 1 others.

    Takes the arguments of `include_one`. sub_i is the mean over the (K-1)-subsets without i of the `lowered` statistic:
    of T with one of the K - 1, at random, counted twice. For `max` that is the max again, so the gain is never negative
    for K > 1, and exactly 0 for the lowest reward of a group. For K = 1, sub_i is 0 and the gain is the reward. A group
    with n < K gets 0.
    """
    # Gaps to the lowest reward have the same differences as the rewards, and give exactly 0 at the lowest rank.
    gap = ranked.x - ranked.x[:, :1]
    own, running, every = per_group(increment_weights, ranked, k, objective)
    at_rank = (gap * running).cumsum(1).addcmul_(gap, own) + (gap * every).sum(1, keepdim=True)
    if objective == "max":
        at_rank.clamp_(min=0)  # rounding may leave a tiny negative number
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
def increment_weights(n: int, k: int, objective: str, width: int, device: torch.device) -> Float[Tensor, "3 W"]:
    """Return the weights of `increments` by rank, in the form of `include_one_weights`. 0 for K = 1.

    The lowered statistic sees rank m at place m among the n - 1 others if m is below the sample, and else at place
    m - 1. So with alpha' its coefficients, a is over alpha_j - alpha'_j and c over alpha_(j+1) - alpha'_j.
    """
    a, b, c = torch.zeros(3, width, dtype=torch.float64)
    if 1 < k <= n:
        alpha = torch.tensor(rank_coefficients(objective, k), dtype=torch.float64)
        lower = lowered(alpha)
        b[:n] = n / k * _weighted_ranks(n, k, alpha)
        a[: n - 1] = _weighted_ranks(n - 1, k - 1, alpha[:-1] - lower)
        c[1:n] = _weighted_ranks(n - 1, k - 1, alpha[1:] - lower)
    return torch.stack([b - a, a - c, c]).to(device)


def lowered(alpha: Float[Tensor, " K"]) -> Float[Tensor, " K-1"]:
    """Return the coefficients of the statistic of K - 1 samples that counts one of them, at random, twice."""
    k = len(alpha)
    rank = torch.arange(1, k, dtype=torch.float64)
    return ((k - rank) * alpha[:-1] + rank * alpha[1:]) / (k - 1)


@lru_cache(maxsize=1024)
def decisive_shares(n: int, k: int, width: int, device: torch.device) -> Float[Tensor, "1 W"]:
    """Return for f = 0 .. n - 1 failures among n - 1 samples the share of their (K-1)-subsets that all fail.

    Column f holds C(f, K-1) / C(n-1, K-1), and columns from n on hold 0, as all do for n < K.
    """
    share = torch.zeros(width, dtype=torch.float64)
    if k <= n:
        failures = torch.arange(n - 1, k - 1, -1, dtype=torch.float64)
        falling = torch.cat([torch.ones(1, dtype=torch.float64), (failures - k + 1) / failures]).cumprod(0)
        share[k - 1 : n] = falling.flip(0)
    return share[None].to(device)


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


def per_group(
    table: Callable[..., Tensor], ranked: Ranked, k: int | Tensor, *key: str
) -> tuple[Float[Tensor, "#G N"], ...]:
    """Return the rows of a table for each group, or once for all groups if size and K are equal everywhere.

    A table is looked up once per *different* pair of size and K, not per group.

    Args:
        table: A function of (n, K, *key, width, device) that returns [rows, width].
        ranked: Sorted groups.
        k: K of all groups or of each.
        key: Further arguments of the table.
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

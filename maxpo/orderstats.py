"""Order statistics of K-subsets: the arithmetic that every max@K estimator is made of.

Notation of a group of n valid rewards: `rho` is the mean of max(S) over all K-subsets S, `in_i` over those
that contain i, `out_i` over those that do not. With ascending order statistics x_(0) <= ... <= x_(n-1),

    in_(p) = x_(p) C(p, K-1) / C(n-1, K-1) + sum_{j>p} x_(j) C(j-1, K-2) / C(n-1, K-1)
    rho    = mean_i in_i
    out_i  = (n rho - K in_i) / (n - K)

so a group costs one sort and one suffix sum. The weights depend on (n, K) alone; they are built as ratios in
float64, which neither overflows nor loses digits at any n, and cached.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@lru_cache(maxsize=512)
def max_rank_weights(n: int, k: int, width: int, device: torch.device) -> Float[Tensor, "2 W"]:
    """The weights of `in_(p)`: row 0 that of x_(p) itself, row 1 that of x_(j) for each p < j.

    Args:
        n: size of the group, n >= k.
        k: size of the subsets, k >= 1.
        width: columns of the result, >= n; those from n on are 0.
        device: where the result lives.
    """
    if not 1 <= k <= n:
        raise ValueError(f"rank weights need 1 <= k <= n, not k={k}, n={n}")
    own = torch.zeros(width, dtype=torch.float64)
    above = torch.zeros(width, dtype=torch.float64)
    # C(p-1, k-1) = C(p, k-1) (p-k+1) / p, from C(n-1, k-1) / C(n-1, k-1) = 1 downwards.
    p = torch.arange(n - 1, 0, -1, dtype=torch.float64)
    own[n - 1] = 1.0
    own[: n - 1] = torch.cumprod(((p - k + 1) / p).clamp(min=0), 0).flip(0)
    if k >= 2:
        # C(j-1, k-2) / C(n-1, k-1) likewise, from (k-1) / (n-1) at j = n-1; j = 0 is never above anything.
        above[n - 1] = (k - 1) / (n - 1)
        j = torch.arange(n - 1, 1, -1, dtype=torch.float64)
        above[1 : n - 1] = (above[n - 1] * torch.cumprod(((j - k + 1) / (j - 1)).clamp(min=0), 0)).flip(0)
    return torch.stack([own, above]).to(device)


def include_one(
    rewards: Float[Tensor, "G N"], k: int, valid: Bool[Tensor, "G N"]
) -> tuple[Float[Tensor, "G N"], Float[Tensor, "G 1"]]:
    """`in_i` for subsets of size k, and the valid size n of each group, both float64.

    Entries that are not valid, and groups with n < k, are 0.

    Args:
        rewards: finite where valid.
        k: size of the subsets, k >= 1.
        valid: True where the sample exists.
    """
    width = rewards.shape[1]
    x = rewards.double().masked_fill(~valid, torch.inf)
    x, order = x.sort(dim=1)
    sizes = valid.sum(1)
    present = torch.arange(width, device=rewards.device) < sizes[:, None]
    present &= (sizes >= k)[:, None]
    x = x.masked_fill(~present, 0.0)
    own, above = _weights_per_group(sizes, k, width)
    tail = (x * above).flip(1).cumsum(1).flip(1)  # includes p itself, which is taken off again below
    at_rank = torch.where(present, x * own + tail - x * above, 0.0)
    return torch.zeros_like(at_rank).scatter_(1, order, at_rank), sizes[:, None].double()


def _weights_per_group(sizes: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows of `max_rank_weights` for each group; one table per *different* size, not per group."""
    different, row = cast("tuple[Tensor, Tensor]", torch.unique(sizes, return_inverse=True))  # pyright: ignore
    zeros = torch.zeros(2, width, dtype=torch.float64, device=sizes.device)
    table = torch.stack([max_rank_weights(n, k, width, sizes.device) if n >= k else zeros for n in map(int, different)])
    weights = table[row]
    return weights[:, 0], weights[:, 1]

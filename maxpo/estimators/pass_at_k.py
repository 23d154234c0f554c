"""Unbiased estimates of pass@k and max@k."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.estimators.order_statistics import include_one, rank


def max_at_k(
    rewards: Float[Tensor, "G N"], k: int, valid: Bool[Tensor, "G N"] | None = None
) -> tuple[Float[Tensor, " G"], Bool[Tensor, " G"]]:
    """Return the unbiased estimate of the best of k samples for each group, and True where a group has k valid samples.

    The estimate is the mean of max(S) over all k-subsets S. For 0/1 rewards with c successes of n samples the estimate
    is pass@k, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: k is outside 1 .. N.
    """
    if not 1 <= k <= rewards.shape[1]:
        raise ValueError(f"max@{k} of groups of {rewards.shape[1]} samples. Allowed is 1 <= k <= {rewards.shape[1]}")
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    n = valid.sum(1)
    return include_one(rank(rewards, valid), k).sum(1) / n.clamp(min=1), n >= k

"""Advantage estimators, one pure function each, all with the signature `f(rewards, k=4, valid=None)`.

`rewards` is [G, N], `valid` [G, N] bool (None: all valid); the result is [G, N] in the dtype of `rewards`,
0 where a sample is not valid and in groups with too few valid samples (`min_valid`). "Unbiased" means
E[(1/N) sum_i A_i grad log pi(y_i)] = grad J exactly, with J = E[max of K independent samples] unless said
otherwise; "centred" means sum_i A_i = 0 in every realised group.

The arithmetic runs in float64 on the device of `rewards`: a matrix of this size costs nothing, and rewards
with a large common offset keep their digits.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.orderstats import include_one


class AdvantageFn(Protocol):
    """The common signature of all estimators."""

    def __call__(
        self, rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None
    ) -> Float[Tensor, "G N"]:
        """Advantages of the same shape."""
        ...


def maxpo(rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None) -> Float[Tensor, "G N"]:
    """Leave-Two-Out (L2O) advantages of max@K: unbiased, and exactly centred.

    A_i = K (in_i - out_i) = K n / (n - K) (in_i - rho): the mean best-of-K with me, minus without me.

    MaxPO (arXiv 2606.06080) subtracts from the increment f_i = in_i - sub_i of sample i the mean over j != i
    of the increment of j computed without i. The `sub` terms cancel between signal and baseline, which leaves
    the form above; a test proves the equality against the pairwise definition. The definition follows the
    paper's abstract and its sister paper (arXiv 2606.06096); the paper's own equation numbers were not at hand.

    Args:
        rewards: any real rewards.
        k: K of max@K, 1 <= k < N. k = 1 is `rloo`.
        valid: groups with n <= k valid samples get 0.

    Raises:
        ValueError: k outside 1 .. N - 1; a reward that is not finite.
    """
    x, valid = _prepare("maxpo", rewards, k, valid, largest_k=rewards.shape[1] - 1)
    return _l2o(x, k, valid).to(rewards.dtype)


def rloo(rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None) -> Float[Tensor, "G N"]:
    """REINFORCE leave-one-out: A_i = r_i - mean of the others. Unbiased for the mean reward, and centred.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!". Equals `maxpo` with k = 1; `k` has
    no effect. Groups with one valid sample get 0.
    """
    x, valid = _prepare("rloo", rewards, 1, valid, largest_k=rewards.shape[1] - 1)
    return _l2o(x, 1, valid).to(rewards.dtype)


def grpo(rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None) -> Float[Tensor, "G N"]:
    """GRPO: A_i = (r_i - mean) / (std + 1e-6). Centred, not unbiased: the scale depends on the group.

    DeepSeekMath (arXiv 2402.03300), section 4.1.2, with the sample standard deviation (n - 1), as the public
    implementations have it. `k` has no effect. A group without spread, or with one valid sample, gets 0.
    """
    x, valid = _prepare("grpo", rewards, 1, valid, largest_k=rewards.shape[1])
    n = valid.sum(1, keepdim=True)
    centred = _centre(x, valid)
    std = (centred.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
    return (centred / (std + 1e-6)).to(rewards.dtype)


def dr_grpo(
    rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None
) -> Float[Tensor, "G N"]:
    """Dr. GRPO: A_i = r_i - mean. Centred; (1 - 1/n) times an unbiased estimate for the mean reward.

    "Understanding R1-Zero-like training" (arXiv 2503.20783). `k` has no effect.
    """
    x, valid = _prepare("dr_grpo", rewards, 1, valid, largest_k=rewards.shape[1])
    return _centre(x, valid).to(rewards.dtype)


def pkpo_loo_minus_one(
    rewards: Float[Tensor, "G N"], k: int = 4, valid: Bool[Tensor, "G N"] | None = None
) -> Float[Tensor, "G N"]:
    """PKPO with the leave-one-out-minus-one baseline: A_i = K (in_i - sub_i). Unbiased, never negative.

    sub_i is the mean of max(S) over the (K-1)-subsets without i, 0 for K = 1. Pass@K Policy Optimization
    (arXiv 2505.15201), eq. 33, scaled to be exactly unbiased under the group mean. Not centred.

    Args:
        rewards: any real rewards.
        k: K of max@K, 1 <= k <= N.
        valid: groups with n < k valid samples get 0.

    Raises:
        ValueError: k outside 1 .. N; a reward that is not finite.
    """
    x, valid = _prepare("pkpo_loo_minus_one", rewards, k, valid, largest_k=rewards.shape[1])
    if k == 1:
        return x.to(rewards.dtype)
    # A common shift moves both terms alike, so it is taken off first to keep the digits of the rewards.
    x = _centre(x, valid)
    included, n = include_one(x, k, valid)
    smaller, _ = include_one(x, k - 1, valid)
    rho_smaller = smaller.sum(1, keepdim=True) / n.clamp(min=1)
    sub = (n * rho_smaller - (k - 1) * smaller) / (n - k + 1).clamp(min=1)
    return torch.where(valid & (n >= k), k * (included - sub), 0.0).to(rewards.dtype)


ADVANTAGES: dict[str, AdvantageFn] = {
    "maxpo": maxpo,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "pkpo_loo_minus_one": pkpo_loo_minus_one,
}


def min_valid(name: str, k: int) -> int:
    """Fewest valid samples that a group needs for estimator `name` to say anything about it."""
    return {"maxpo": k + 1, "pkpo_loo_minus_one": k}.get(name, 2)


def _l2o(x: Tensor, k: int, valid: Tensor) -> Tensor:
    """K n / (n - K) (in_i - rho) in float64, with rho taken as the mean of in_i so that the sum is 0."""
    included, n = include_one(_centre(x, valid), k, valid)
    rho = included.sum(1, keepdim=True) / n.clamp(min=1)
    scale = k * n / (n - k).clamp(min=1)
    return torch.where(valid & (n > k), scale * (included - rho), 0.0)


def _centre(x: Tensor, valid: Tensor) -> Tensor:
    """x minus the mean of its group's valid entries; 0 where not valid."""
    mean = x.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    return torch.where(valid, x - mean, 0.0)


def _prepare(name: str, rewards: Tensor, k: int, valid: Tensor | None, *, largest_k: int) -> tuple[Tensor, Tensor]:
    """Check the arguments; float64 rewards with 0 where not valid, and the mask."""
    if rewards.ndim != 2 or not rewards.is_floating_point():
        raise ValueError(f"{name}: rewards must be a float tensor [G, N], not {rewards.dtype} {tuple(rewards.shape)}")
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    if valid.shape != rewards.shape or valid.dtype != torch.bool:
        raise ValueError(f"{name}: valid must be bool {tuple(rewards.shape)}, not {valid.dtype} {tuple(valid.shape)}")
    if not 1 <= k <= largest_k:
        raise ValueError(f"{name}: k = {k} with groups of N = {rewards.shape[1]}; allowed is 1 <= k <= {largest_k}")
    x = torch.where(valid, rewards.double(), 0.0)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: a valid reward is not finite")
    return x, valid

"""Advantage estimators, one pure function each, all with the signature `f(rewards, k=4, valid=None)`.

`rewards` is [G, N]. `k` is the K of all groups, or a tensor [G] with the K of each group. `valid` is a bool tensor
[G, N], and None means that all samples are valid. The result is [G, N] in the dtype of `rewards`. The result is 0 where
a sample is not valid, and in groups with too few valid samples (`min_valid`). A group's arithmetic uses the valid size
n of the group.

"Unbiased" means E[(1/n) sum_i A_i grad log pi(y_i)] = grad J exactly, scale included. J is E[max of K independent
samples] unless stated otherwise. "Centred" means sum_i A_i = 0 in every realised group. `rho`, `in_i` and `out_i` are
defined in `maxpo.estimators.order_statistics`.

Every function raises ValueError for a K outside its range and for rewards that are not a float matrix or not finite.
Functions with a formula for rewards of 0 and 1 also raise ValueError for other rewards.

The arithmetic runs in float64 on the device of `rewards`. A matrix of this size costs nothing, and rewards with a large
common offset keep their digits.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from maxpo.estimators.arguments import GroupK, Mask, prepare
from maxpo.estimators.order_statistics import decisive_shares, include_one, increments, per_group


class AdvantageFn(Protocol):
    """Common signature of all estimators."""

    def __call__(self, rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
        """Return advantages of the same shape as `rewards`."""
        ...


def maxpo(
    rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None, *, objective: str = "max"
) -> Float[Tensor, "G N"]:
    """Compute the Leave-Two-Out (L2O) advantages of max@K. Unbiased, and exactly centred.

    A_i = K (in_i - out_i) = K n / (n - K) (in_i - rho). The difference is the mean best-of-K with sample i, minus the
    mean best-of-K without sample i.

    MaxPO (arXiv 2606.06080) subtracts from the increment f_i = in_i - sub_i of sample i the mean over j != i
    of the increment of j computed without i. The `sub` terms cancel between signal and baseline, which leaves
    the form above. Tests prove the equality against the pairwise definition, and against values of the reference
    implementation of arXiv 2606.06096. With another `objective` (`maxpo.estimators.objectives`) the same formula is
    unbiased for that statistic of K samples. It is the only unbiased estimator that is exactly centred
    (docs/theory.md).

    Needs 1 <= k <= N - 1. k = 1 gives `rloo`.
    """
    g = prepare("maxpo", rewards, k, valid)
    return g.finish(g.k * g.n / (g.n - g.k) * g.deviation(objective))


def canonical(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute the finite-batch canonical form A_i = in_i - rho. Centred. (1 - K/n) / K times an unbiased estimate.

    Equals `maxpo` up to that constant (arXiv 2606.06096). Needs 1 <= k <= N - 1.
    """
    g = prepare("canonical", rewards, k, valid)
    return g.finish(g.deviation("max"))


def pkpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute PKPO without a baseline, A_i = K in_i. Unbiased, not centred.

    Pass@K Policy Optimization (arXiv 2505.15201), eq. 19, times N. Needs 1 <= k <= N.
    """
    g = prepare("pkpo", rewards, k, valid)
    return g.finish(g.k * include_one(g.ranked(), g.k_index, "max"))


def pkpo_loo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute PKPO with the leave-one-out baseline, A_i = K in_i - K n/(n-1) out_i. Unbiased, not centred.

    arXiv 2505.15201, eq. 29, times N. The baseline carries a factor n/(n-1), so a constant shift of the rewards
    changes the advantages. Needs 1 <= k <= N - 1.
    """
    g = prepare("pkpo_loo", rewards, k, valid)
    included = include_one(g.ranked(), g.k_index, "max")
    excluded = (included.sum(1, keepdim=True) - g.k * included) / (g.n - g.k)
    return g.finish(g.k * included - g.k * g.n / (g.n - 1) * excluded)


def pkpo_loo_minus_one(
    rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None, *, objective: str = "max"
) -> Float[Tensor, "G N"]:
    """Compute PKPO with the leave-one-out-minus-one baseline, A_i = K (in_i - sub_i). Unbiased, not centred.

    sub_i is the mean of max(S) over the (K-1)-subsets without i, and 0 for K = 1. An advantage is never negative for
    K > 1, and exactly 0 for the lowest reward of a group. arXiv 2505.15201, eq. 33, scaled to be unbiased under
    the group mean. With another `objective` sub_i is that of `increments`, and the formula is unbiased for that
    statistic of K samples; for `mean` and K > 1 it is `rloo`. It is the only unbiased estimator that never trains on a
    failure (docs/theory.md). Needs 1 <= k <= N.
    """
    g = prepare("pkpo_loo_minus_one", rewards, k, valid)
    return g.finish(g.k * increments(g.ranked(), g.k_index, objective))


def interpolated(
    rewards: Float[Tensor, "G N"],
    k: GroupK = 4,
    valid: Mask = None,
    *,
    objective: str = "max",
    lam: float | None = None,
) -> Float[Tensor, "G N"]:
    """Compute (1 - lam) `pkpo_loo_minus_one` + lam `maxpo`. Unbiased for every lam. Centred for lam = 1 only.

    Args:
        rewards: [G, N] rewards.
        k: K of all groups or of each, 1 <= k <= N.
        valid: [G, N] mask.
        objective: Statistic of K samples, as in `maxpo.estimators.objectives`.
        lam: Any number that does not depend on the rewards of these groups. None: (n - K) / (n - 1), the plug-in of the
            others' empirical distribution into the best baseline. That is `rloo` for K = 1.

    A group of n = K valid samples has no `maxpo`, and gets lam = 0.
    """
    g = prepare("interpolated", rewards, k, valid)
    n, at_k = torch.as_tensor(g.n, dtype=torch.float64), torch.as_tensor(g.k, dtype=torch.float64)
    more = (n - at_k).clamp(min=1.0)  # of a group with n = K, whose weight is 0
    weight = (n - at_k) / (n - 1).clamp(min=1.0) if lam is None else torch.where(n > at_k, torch.full_like(n, lam), 0.0)
    minus_one = at_k * increments(g.ranked(), g.k_index, objective)
    l2o = at_k * n / more * g.deviation(objective)
    return g.finish(torch.lerp(minus_one, l2o, weight.to(l2o.device)))


def kappa(
    rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None, *, kappa: float = 3.0
) -> Float[Tensor, "G N"]:
    """Compute A_i = K q_i (r_i - c / (c + kappa (n - 1 - c))), for rewards of 0 and 1. Unbiased, not centred.

    Of the n - 1 others c are successes, and q_i is the share of their (K-1)-subsets that all fail. So the baseline
    estimates that of lowest variance if the squared score of a failure is `kappa` times that of a success
    (docs/theory.md). kappa = 1 is `interpolated` without `lam`, and kappa to infinity is `pkpo_loo_minus_one`.
    Needs 1 <= k <= N and kappa > 0.
    """
    g = prepare("kappa", rewards, k, valid, binary=True)
    others = g.x.sum(1, keepdim=True) - g.x
    failures = g.n - 1 - others
    share = per_group(decisive_shares, g.ranked(), g.k_index)[0].expand_as(g.x)
    decisive = share.gather(1, failures.long().clamp(0, g.x.shape[1] - 1))
    baseline = others / (others + kappa * failures).clamp(min=1e-300)
    return g.finish(g.k * decisive * (g.x - baseline))


def passk_training(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute Pass@k Training, A_i = (in_i - rho) / sqrt(rho (1 - rho)). Centred, not unbiased.

    The analytical form of arXiv 2508.10751, for rewards of 0 and 1. The result is 0 where rho (1 - rho) is below 1e-12,
    that is, where rho is 0 or 1. Needs 1 <= k <= N - 1.
    """
    g = prepare("passk_training", rewards, k, valid, binary=True)
    rho = include_one(g.ranked(), g.k_index).sum(1, keepdim=True) / g.n
    variance = rho * (1 - rho)
    return g.finish(torch.where(variance > 1e-12, g.deviation("max") / variance.clamp(min=1e-12).sqrt(), 0.0))


def top1_gap(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Give the best sample n (best - second best) and the others 0. Unbiased for K = n only, not centred.

    The top-1 gap of arXiv 2503.19595, times N. `k` has no effect. Needs two valid samples.
    """
    g = prepare("top1_gap", rewards, k, valid)
    best, place = (g.x if g.valid is None else g.x.masked_fill(~g.valid, -torch.inf)).topk(2)
    gap = g.n * (best[:, :1] - best[:, 1:])
    return g.finish(torch.zeros_like(g.x).scatter_(1, place[:, :1], gap))


def rloo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute REINFORCE leave-one-out, A_i = r_i - mean of the others. Unbiased for the mean reward, and centred.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!". Equals `maxpo` with k = 1.
    `k` has no effect. Groups with one valid sample get 0.
    """
    g = prepare("rloo", rewards, k, valid)
    return g.finish(g.n / (g.n - 1) * g.centred())


def grpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute GRPO, A_i = (r_i - mean) / (std + 1e-6). Centred, not unbiased, because the scale depends on the group.

    DeepSeekMath (arXiv 2402.03300), section 4.1.2, with the sample standard deviation (n - 1) of the public
    implementations. `k` has no effect. A group without spread, or with one valid sample, gets 0.
    """
    g = prepare("grpo", rewards, k, valid)
    centred = g.centred()
    std = (centred.square().sum(1, keepdim=True) / (g.n - 1)).sqrt()
    return g.finish(centred / (std + 1e-6))


def dr_grpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute Dr. GRPO, A_i = r_i - mean. Centred. (1 - 1/n) times an unbiased estimate for the mean reward.

    "Understanding R1-Zero-like training" (arXiv 2503.20783). `k` has no effect.
    """
    g = prepare("dr_grpo", rewards, k, valid)
    return g.finish(g.centred())


def maxrl(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Compute MaxRL, A_i = (r_i - mean) / mean, 0 where the mean is 0. Centred, and unbiased for its own objective.

    Maximum Likelihood Reinforcement Learning (arXiv 2602.02710). With rewards of 0 and 1 the objective is the
    truncated log p, sum_{m=1}^{n-1} pass@m / m. Without the baseline the sum would reach n. `k` has no effect.
    """
    g = prepare("maxrl", rewards, k, valid, binary=True)
    return g.finish(torch.where(g.mean > 0, g.centred() / g.mean.clamp(min=1 / rewards.shape[1]), 0.0))


ADVANTAGES: dict[str, AdvantageFn] = {
    "maxpo": maxpo,
    "canonical": canonical,
    "pkpo": pkpo,
    "pkpo_loo": pkpo_loo,
    "pkpo_loo_minus_one": pkpo_loo_minus_one,
    "interpolated": interpolated,
    "kappa": kappa,
    "passk_training": passk_training,
    "top1_gap": top1_gap,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "maxrl": maxrl,
}

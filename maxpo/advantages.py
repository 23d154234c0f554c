"""Advantage estimators, one pure function each, all with the signature `f(rewards, k=4, valid=None)`.

`rewards` is [G, N], `k` the K of all groups or of each [G], `valid` [G, N] bool (None: all valid); the result is
[G, N] in the dtype of `rewards`, 0 where a sample is not valid and in groups with too few valid samples
(`min_valid`). A group's arithmetic is that of its valid size n. "Unbiased" means
E[(1/n) sum_i A_i grad log pi(y_i)] = grad J exactly, scale included, with J = E[max of K independent samples] unless
said otherwise; "centred" means sum_i A_i = 0 in every realised group. `rho`, `in_i` and `out_i` are those of
`maxpo.orderstats`.

Every function raises ValueError for a K that it cannot use, for rewards that are not a float matrix or not finite, and
where its formula needs rewards of 0 and 1 for any others.

The arithmetic runs in float64 on the device of `rewards`: a matrix of this size costs nothing, and rewards
with a large common offset keep their digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.config.algorithm import BEYOND_K
from maxpo.orderstats import Ranked, deviation, include_one, increments, rank

GroupK = int | Int[Tensor, " G"]
"""K of all groups, or of each."""
Mask = Bool[Tensor, "G N"] | None
"""True where the sample exists; None: everywhere."""


class AdvantageFn(Protocol):
    """The common signature of all estimators."""

    def __call__(self, rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
        """Advantages of the same shape."""
        ...


def maxpo(
    rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None, *, objective: str = "max"
) -> Float[Tensor, "G N"]:
    """Leave-Two-Out (L2O) advantages of max@K: unbiased, and exactly centred.

    A_i = K (in_i - out_i) = K n / (n - K) (in_i - rho): the mean best-of-K with me, minus without me.

    MaxPO (arXiv 2606.06080) subtracts from the increment f_i = in_i - sub_i of sample i the mean over j != i
    of the increment of j computed without i. The `sub` terms cancel between signal and baseline, which leaves
    the form above; a test proves the equality against the pairwise definition. The definition follows the
    paper's abstract and its sister paper (arXiv 2606.06096); the paper's own equation numbers were not at hand.
    With another `objective` (`maxpo.objective`) the same formula is unbiased for that statistic of K samples.

    Needs 1 <= k <= N - 1; k = 1 is `rloo`.
    """
    g = _prepare("maxpo", rewards, k, valid)
    return g.finish(g.k * g.n / (g.n - g.k) * g.deviation(objective))


def canonical(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """The finite-batch canonical form: A_i = in_i - rho. Centred; (1 - K/n) / K times an unbiased estimate.

    `maxpo` up to that constant (arXiv 2606.06096). Needs 1 <= k <= N - 1.
    """
    g = _prepare("canonical", rewards, k, valid)
    return g.finish(g.deviation("max"))


def pkpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """PKPO without a baseline: A_i = K in_i. Unbiased, not centred.

    Pass@K Policy Optimization (arXiv 2505.15201), eq. 19, times N. Needs 1 <= k <= N.
    """
    g = _prepare("pkpo", rewards, k, valid)
    return g.finish(g.k * include_one(g.ranked(), g.k_index, "max"))


def pkpo_loo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """PKPO with the leave-one-out baseline: A_i = K in_i - K n/(n-1) out_i. Unbiased, not centred.

    arXiv 2505.15201, eq. 29, times N. The baseline carries a factor n/(n-1), so a constant shift of the rewards is
    not removed. Needs 1 <= k <= N - 1.
    """
    g = _prepare("pkpo_loo", rewards, k, valid)
    included = include_one(g.ranked(), g.k_index, "max")
    excluded = (included.sum(1, keepdim=True) - g.k * included) / (g.n - g.k)
    return g.finish(g.k * included - g.k * g.n / (g.n - 1) * excluded)


def pkpo_loo_minus_one(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """PKPO with the leave-one-out-minus-one baseline: A_i = K (in_i - sub_i). Unbiased, not centred.

    sub_i is the mean of max(S) over the (K-1)-subsets without i, 0 for K = 1. Never negative for K > 1, and exactly 0
    for the lowest reward of a group. arXiv 2505.15201, eq. 33, scaled to be unbiased under the group mean.
    Needs 1 <= k <= N.
    """
    g = _prepare("pkpo_loo_minus_one", rewards, k, valid)
    return g.finish(g.k * increments(g.ranked(), g.k_index))


def passk_training(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Pass@k Training: A_i = (in_i - rho) / sqrt(rho (1 - rho)). Centred, not unbiased.

    The analytical form of arXiv 2508.10751, for rewards of 0 and 1; 0 where rho (1 - rho) is below 1e-12, so where
    rho is 0 or 1. Needs 1 <= k <= N - 1.
    """
    g = _prepare("passk_training", rewards, k, valid, binary=True)
    rho = include_one(g.ranked(), g.k_index).sum(1, keepdim=True) / g.n
    variance = rho * (1 - rho)
    return g.finish(torch.where(variance > 1e-12, g.deviation("max") / variance.clamp(min=1e-12).sqrt(), 0.0))


def top1_gap(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Top-1 gap: the best sample gets n (best - second best), the rest 0. Unbiased for K = n only, not centred.

    arXiv 2503.19595, times N. `k` has no effect. Needs two valid samples.
    """
    g = _prepare("top1_gap", rewards, k, valid)
    best, place = (g.x if g.valid is None else g.x.masked_fill(~g.valid, -torch.inf)).topk(2)
    gap = g.n * (best[:, :1] - best[:, 1:])
    return g.finish(torch.zeros_like(g.x).scatter_(1, place[:, :1], gap))


def rloo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """REINFORCE leave-one-out: A_i = r_i - mean of the others. Unbiased for the mean reward, and centred.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!". Equals `maxpo` with k = 1; `k` has
    no effect. Groups with one valid sample get 0.
    """
    g = _prepare("rloo", rewards, k, valid)
    return g.finish(g.n / (g.n - 1) * g.centred())


def grpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """GRPO: A_i = (r_i - mean) / (std + 1e-6). Centred, not unbiased: the scale depends on the group.

    DeepSeekMath (arXiv 2402.03300), section 4.1.2, with the sample standard deviation (n - 1), as the public
    implementations have it. `k` has no effect. A group without spread, or with one valid sample, gets 0.
    """
    g = _prepare("grpo", rewards, k, valid)
    centred = g.centred()
    std = (centred.square().sum(1, keepdim=True) / (g.n - 1)).sqrt()
    return g.finish(centred / (std + 1e-6))


def dr_grpo(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """Dr. GRPO: A_i = r_i - mean. Centred; (1 - 1/n) times an unbiased estimate for the mean reward.

    "Understanding R1-Zero-like training" (arXiv 2503.20783). `k` has no effect.
    """
    g = _prepare("dr_grpo", rewards, k, valid)
    return g.finish(g.centred())


def maxrl(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
    """MaxRL: A_i = (r_i - mean) / mean, 0 where the mean is 0. Centred; unbiased for its own objective.

    Maximum Likelihood Reinforcement Learning (arXiv 2602.02710). With rewards of 0 and 1 the objective is log p,
    truncated: sum_{m=1}^{n-1} pass@m / m (without the baseline it would reach n). `k` has no effect.
    """
    g = _prepare("maxrl", rewards, k, valid, binary=True)
    return g.finish(torch.where(g.mean > 0, g.centred() / g.mean.clamp(min=1 / rewards.shape[1]), 0.0))


ADVANTAGES: dict[str, AdvantageFn] = {
    "maxpo": maxpo,
    "canonical": canonical,
    "pkpo": pkpo,
    "pkpo_loo": pkpo_loo,
    "pkpo_loo_minus_one": pkpo_loo_minus_one,
    "passk_training": passk_training,
    "top1_gap": top1_gap,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "maxrl": maxrl,
}


@overload
def min_valid(name: str, k: int) -> int: ...
@overload
def min_valid(name: str, k: GroupK) -> GroupK: ...
def min_valid(name: str, k: GroupK) -> GroupK:
    """Fewest valid samples that a group needs for estimator `name` to say anything about it."""
    return k + BEYOND_K[name] if name in BEYOND_K else 2


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


@dataclass(frozen=True, slots=True)
class _Groups:
    """Checked arguments of an estimator, in float64."""

    x: Float[Tensor, "G N"]
    """Rewards, 0 where not valid and in groups with too few valid samples."""
    valid: Mask
    """None where every sample of every group is there."""
    n: Float[Tensor, "G 1"] | float
    """Valid size; in groups with too few samples the size that would do, so that nothing divides by 0."""
    k: Float[Tensor, "G 1"] | float
    k_index: GroupK
    base: Float[Tensor, "G 1"]
    """One of the rewards."""
    offset: Float[Tensor, "G 1"]
    """Mean of the rewards, less `base`: so that equal rewards have exactly no deviation."""
    dtype: torch.dtype

    @property
    def mean(self) -> Float[Tensor, "G 1"]:
        """Mean of the valid rewards."""
        return self.base + self.offset

    def centred(self) -> Float[Tensor, "G N"]:
        """Rewards minus their group's mean; 0 where not valid."""
        centred = self.x - self.base - self.offset
        return centred if self.valid is None else centred.masked_fill_(~self.valid, 0.0)

    def ranked(self) -> Ranked:
        """The groups in ascending order."""
        return rank(self.x, self.valid)

    def deviation(self, objective: str) -> Float[Tensor, "G N"]:
        """in_i - rho. A common shift cancels in it, so it is taken off first to keep the digits of the rewards."""
        return deviation(rank(self.centred(), self.valid), self.k_index, objective)

    def finish(self, advantages: Tensor) -> Float[Tensor, "G N"]:
        """0 where not valid, in the dtype of the rewards."""
        if self.valid is not None:
            advantages = advantages.masked_fill(~self.valid, 0.0)
        return advantages.to(self.dtype)


def _prepare(name: str, rewards: Tensor, k: GroupK, valid: Mask, *, binary: bool = False) -> _Groups:
    """Check the arguments of estimator `name`."""
    if rewards.ndim != 2 or not rewards.is_floating_point():
        raise ValueError(f"{name}: rewards must be a float tensor [G, N], not {rewards.dtype} {tuple(rewards.shape)}")
    groups, width = rewards.shape
    if groups < 1 or width < min_valid(name, 1):
        raise ValueError(
            f"{name}: groups need {min_valid(name, 1)} samples, and there are rewards {tuple(rewards.shape)}"
        )
    if valid is not None and (valid.shape != rewards.shape or valid.dtype != torch.bool):
        raise ValueError(f"{name}: valid must be bool {tuple(rewards.shape)}, not {valid.dtype} {tuple(valid.shape)}")
    if name not in BEYOND_K:
        k = 1
    _check_k(name, k, groups, width)
    need = min_valid(name, k)
    x = rewards.double()
    n: Tensor | float = float(width)
    base = x[:, :1]
    if valid is not None:
        n = valid.sum(1)
        valid = valid & (n >= need)[:, None]
        n = torch.maximum(n, torch.as_tensor(need, device=n.device)).double()[:, None]
        x = torch.where(valid, x, 0.0)
        base = x.gather(1, valid.long().argmax(1, keepdim=True))
    relative = x - base if valid is None else torch.where(valid, x - base, 0.0)
    offset = relative.sum(1, keepdim=True) / n
    if not bool(torch.isfinite(offset).all()):
        raise ValueError(f"{name}: a valid reward is not finite")
    if binary and not bool(((x == 0) | (x == 1)).all()):
        other = x[(x != 0) & (x != 1)][0]
        raise ValueError(f"{name}: its formula is for rewards of 0 and 1, and there is a reward of {float(other):g}")
    return _Groups(x, valid, n, k if isinstance(k, int) else k.double()[:, None], k, base, offset, rewards.dtype)


def _check_k(name: str, k: GroupK, groups: int, width: int) -> None:
    largest = width - BEYOND_K.get(name, 1)
    if not isinstance(k, int) and (k.shape != (groups,) or k.is_floating_point() or k.dtype == torch.bool):
        raise ValueError(f"{name}: k must be a whole number or integers [{groups}], not {k.dtype} {tuple(k.shape)}")
    low, high = (k, k) if isinstance(k, int) else (int(k.min()), int(k.max()))
    if low < 1 or high > largest:
        wrong = low if low < 1 else high
        raise ValueError(f"{name}: k = {wrong} with groups of N = {width}; allowed is 1 <= k <= {largest}")

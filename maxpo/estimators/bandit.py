"""Exact or sampled mean and variance of an estimator's gradient on a softmax bandit.

The policy is a softmax over V arms with fixed rewards. A group is N independent draws, and an estimator's gradient with
respect to the logits is g = (1/N) sum_i A_i (e_{a_i} - p). The gradient of the objective is always exact. The
expectation over groups is exact for small cases, which are enumerated over all multisets of arms.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maxpo.estimators.advantages import ADVANTAGES, AdvantageFn
from maxpo.estimators.mixing import DEFAULTS, Parameters, estimator, nonzero
from maxpo.estimators.objectives import rank_coefficients

MOST_CELLS = 500_000
"""Largest number of multisets of arms, times N, for which the expectation is exact."""


@dataclass(frozen=True, slots=True)
class Bandit:
    """V arms with their rewards and probabilities."""

    rewards: Float[Tensor, " V"]
    probabilities: Float[Tensor, " V"]

    def gradient(self, k: int, objective: str) -> Float[Tensor, " V"]:
        """Return the exact gradient of E[statistic of K draws] with respect to the logits."""
        logits = self.probabilities.log().requires_grad_()
        values = torch.tensor(sorted({float(r) for r in self.rewards}), dtype=torch.float64)
        each = torch.zeros_like(values).index_add(0, torch.searchsorted(values, self.rewards), logits.softmax(0))
        below = each.cumsum(0)[:-1].clamp(max=1 - 1e-16)  # P(a draw <= value). The last value has 1.
        # P(j-th smallest <= value) = P(at least j of K draws <= value)
        counts = torch.arange(k + 1, dtype=torch.float64)[:, None]
        log_choose = torch.lgamma(counts.new_tensor(k + 1.0)) - torch.lgamma(counts + 1) - torch.lgamma(k - counts + 1)
        exactly = (log_choose + counts * below.log() + (k - counts) * torch.log1p(-below)).exp()
        at_least = exactly.flip(0).cumsum(0).flip(0)[1:]
        alpha = torch.tensor(rank_coefficients(objective, k), dtype=torch.float64)
        # E[X] = largest value - sum over values of P(X <= value) times the gap to the next value
        expected = values[-1] - (alpha @ at_least) @ (values[1:] - values[:-1])
        return torch.autograd.grad(expected, logits)[0] if len(values) > 1 else torch.zeros_like(self.rewards)


def bandit_of(rewards: Sequence[float], weights: Sequence[float]) -> Bandit:
    """Return a bandit with one arm per reward, drawn in proportion to the weight of the arm."""
    p = torch.tensor(weights, dtype=torch.float64)
    return Bandit(torch.tensor(rewards, dtype=torch.float64), p / p.sum())


def bernoulli(p: float) -> Bandit:
    """Return a bandit of two arms: reward 1 with probability p, and reward 0."""
    return bandit_of([0.0, 1.0], [1 - p, p])


def empirical(rewards: Sequence[float]) -> Bandit:
    """Return a bandit with one arm per different reward, drawn in proportion to the count of that reward."""
    counts = Counter(rewards)
    return bandit_of(list(counts), list(counts.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of one estimator on a bandit. Its gradient g is compared with the gradient of the objective J at K."""

    estimator: str
    refused: str = ""
    """Reason for the refusal of these rewards or this N and K. The other fields are then meaningless."""
    unbiased: bool = False
    """True if the bias is rounding, or is within chance for a sample of groups."""
    bias: float = math.nan
    """|E g - grad J| / |grad J|."""
    bias_error: float = 0.0
    """Standard error of `bias`. 0 if the expectation is exact."""
    scale: float = math.nan
    """<E g, grad J> / |grad J|^2. 1 for an unbiased estimator."""
    angle: float = math.nan
    """Angle between E g and grad J, in degrees."""
    variance: float = math.nan
    """Total variance of g, the trace of its covariance. See `kappa` of `compare`."""
    signal_to_noise: float = math.nan
    """|E g|^2 / variance for one group. Independent of the estimator's scale. NaN with `kappa`."""
    largest_sum: float = math.nan
    """Largest |sum_i A_i| of any group divided by the largest |A_i|."""
    nonzero: float = math.nan
    """Share of samples with a non-zero advantage."""
    microseconds: float = math.nan
    """Time per group in a batch of 256 groups."""

    @property
    def centred(self) -> bool:
        """True if the advantages of every group add up to 0 within rounding."""
        return self.largest_sum <= 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Figures of several estimators on the same groups."""

    exact: bool
    """True if every possible group was counted with its probability. False if groups were drawn."""
    groups: int
    """Number of multisets enumerated, or of groups drawn."""
    measured: tuple[Measured, ...]


def compare(
    bandit: Bandit,
    n: int,
    k: int,
    *,
    parameters: Parameters = DEFAULTS,
    kappa: float | None = None,
    names: Sequence[str] = tuple(ADVANTAGES),
    draws: int = 20_000,
    seed: int = 0,
    timed: bool = True,
) -> Comparison:
    """Measure estimators on a bandit.

    Args:
        bandit: Arms with rewards and probabilities.
        n: Number of samples of a group.
        k: K of the objective.
        parameters: Parameters of the estimators, and the objective whose gradient is the target.
        kappa: Squared score of the lowest reward divided by that of the highest. None: the variance is that of the
            bandit's softmax. A number: scores of different samples are orthogonal, as in a large model, and between
            the two rewards the squared score is a power of `kappa`. The variance is then in units of the squared score
            of the highest reward.
        names: Estimators to measure, keys of `ADVANTAGES`.
        draws: Number of groups to draw if the possible groups are too many (`MOST_CELLS`).
        seed: Seed of the draws.
        timed: True to measure the time too.

    Raises:
        ValueError: The objective does not fit K, or the gradient of the objective is too small for a comparison.
    """
    arms_count = len(bandit.rewards)
    exact = n * math.comb(n + arms_count - 1, n) <= MOST_CELLS
    arms, weight = _enumerate(bandit, n) if exact else _draw(bandit, n, draws, seed)
    objective = parameters.objective
    target = bandit.gradient(k, objective)
    size = math.sqrt(float(target @ target))
    spread = float(bandit.rewards.max() - bandit.rewards.min())
    if size <= 1e-10 * spread:
        raise ValueError(
            f"the gradient of {objective} of {k} samples has length {size:.1g} for these rewards, too small to compare "
            "estimators with. A smaller K, or less certain rewards, give a larger gradient."
        )
    rewards = bandit.rewards[arms]
    size_of_scores = None if kappa is None else kappa ** ((bandit.rewards.max() - rewards) / spread)
    timed_rewards = rewards[torch.arange(256) % len(arms)]
    measured: list[Measured] = []
    for name in names:
        advantage = estimator(name, parameters)
        try:
            advantages = advantage(rewards, k)
        except ValueError as error:
            measured.append(Measured(estimator=name, refused=str(error)))
            continue
        cost = _microseconds(advantage, timed_rewards, k) if timed else math.nan
        standard_error = 0.0 if exact else draws**-0.5
        row = _measure(name, bandit, arms, weight, rewards, advantages, target, standard_error, cost)
        if size_of_scores is not None:
            variance = float(weight @ (advantages.square() * size_of_scores).mean(1)) / n
            row = replace(row, variance=variance, signal_to_noise=math.nan)
        measured.append(row)
    return Comparison(exact=exact, groups=len(arms), measured=tuple(measured))


def _measure(
    name: str,
    bandit: Bandit,
    arms: Int[Tensor, "M N"],
    weight: Float[Tensor, " M"],
    rewards: Float[Tensor, "M N"],
    advantages: Float[Tensor, "M N"],
    target: Float[Tensor, " V"],
    standard_error: float,
    cost: float,
) -> Measured:
    n = arms.shape[1]
    by_arm = torch.zeros(len(arms), len(bandit.rewards), dtype=torch.float64).scatter_add_(1, arms, advantages)
    sums = advantages.sum(1, keepdim=True)
    gradients = (by_arm - sums * bandit.probabilities) / n
    mean = weight @ gradients
    variance = float(weight @ (gradients - mean).square().sum(1))
    size, own, off = (math.sqrt(float(v @ v)) for v in (target, mean, mean - target))
    largest = float(advantages.abs().max())
    along = float(mean @ target)
    chance = 3 * standard_error * math.sqrt(variance)
    return Measured(
        estimator=name,
        unbiased=off <= 1e-7 * size + 1e-13 * largest + chance,
        bias=off / size,
        bias_error=standard_error * math.sqrt(variance) / size,
        scale=along / size**2,
        angle=math.degrees(math.acos(max(-1.0, min(1.0, along / (size * own))))) if own else math.nan,
        variance=variance,
        signal_to_noise=own**2 / variance if variance else math.inf,
        largest_sum=float(sums.abs().max()) / largest if largest else 0.0,
        nonzero=float(
            weight @ nonzero(advantages, rewards, torch.ones_like(rewards, dtype=torch.bool)).double().mean(1)
        ),
        microseconds=cost,
    )


def _enumerate(bandit: Bandit, n: int) -> tuple[Int[Tensor, "M N"], Float[Tensor, " M"]]:
    """Return every multiset of n arms, and the probability of each."""
    arms = torch.tensor(list(itertools.combinations_with_replacement(range(len(bandit.rewards)), n)))
    counts = torch.zeros(len(arms), len(bandit.rewards), dtype=torch.float64)
    counts.scatter_add_(1, arms, torch.ones(arms.shape, dtype=torch.float64))
    log_orders = math.lgamma(n + 1) - torch.lgamma(counts + 1).sum(1)
    return arms, (log_orders + counts @ bandit.probabilities.log()).exp()


def _draw(bandit: Bandit, n: int, draws: int, seed: int) -> tuple[Int[Tensor, "M N"], Float[Tensor, " M"]]:
    """Draw groups of n arms. Every group has the same weight."""
    generator = torch.Generator().manual_seed(seed)
    arms = torch.multinomial(bandit.probabilities, draws * n, replacement=True, generator=generator)
    return arms.view(draws, n), torch.full((draws,), 1 / draws, dtype=torch.float64)


def _microseconds(advantage: AdvantageFn, rewards: Float[Tensor, "G N"], k: int) -> float:
    """Return the median time per group in microseconds."""
    seconds: list[float] = []
    for _ in range(7):
        started = time.perf_counter()
        advantage(rewards, k)
        seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds) / len(rewards)

"""The closed forms against the definitions, by enumeration of all subsets with rational arithmetic."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import pytest
import torch

from maxpo.estimators.advantages import ADVANTAGES, maxpo
from maxpo.estimators.objectives import rank_coefficients
from maxpo.estimators.order_statistics import deviation, include_one, increments, rank
from maxpo.estimators.pass_at_k import max_at_k
from tests.devices import on_each_device

Rewards = Sequence[Fraction]


def mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def best(sample: Rewards) -> Fraction:
    return max(sample, default=Fraction(0))


def over_subsets(statistic: Callable[[Rewards], Fraction], rewards: Rewards, k: int) -> tuple[Fraction, list, list]:
    """rho, in_i and out_i by the definition; out_i is empty for K = N."""
    everyone = range(len(rewards))
    value = {s: statistic([rewards[i] for i in s]) for s in itertools.combinations(everyone, k)}
    inside = [mean([v for s, v in value.items() if i in s]) for i in everyone]
    outside = [mean([v for s, v in value.items() if i not in s]) for i in everyone] if k < len(rewards) else []
    return mean(list(value.values())), inside, outside


def increment(rewards: Rewards, i: int, k: int) -> Fraction:
    """Mean over the (K-1)-subsets of the others of what i adds to their best."""
    others = [r for j, r in enumerate(rewards) if j != i]
    subsets = list(itertools.combinations(others, k - 1))
    return mean([best([rewards[i], *s]) - best(s) for s in subsets])


def l2o_by_pairs(rewards: Rewards, k: int) -> list[Fraction]:
    """Increment of i, minus the mean over j of the increment of j in the group without i; times K."""
    everyone = range(len(rewards))

    def without(i: int, j: int) -> Fraction:
        return increment([*rewards[:i], *rewards[i + 1 :]], j - (j > i), k)

    return [k * (increment(rewards, i, k) - mean([without(i, j) for j in everyone if j != i])) for i in everyone]


def draw(kind: str, n: int, seed: int = 0) -> list[Fraction]:
    rng = random.Random(f"{kind}{n}{seed}")
    numbers: dict[str, Callable[[], Fraction]] = {
        "binary": lambda: Fraction(rng.random() < 0.4),
        "ties": lambda: Fraction(rng.randint(0, 2)),
        "graded": lambda: Fraction(rng.randint(0, 1000), 64),
        "negative": lambda: Fraction(rng.randint(-1000, 10), 8),
        "offset": lambda: Fraction(1_000_000) + Fraction(rng.randint(0, 64), 16),
    }
    return [numbers[kind]() for _ in range(n)]


def check(actual: torch.Tensor, expected: Sequence[Fraction], rtol: float = 1e-12, atol: float = 1e-10) -> None:
    want = torch.tensor([float(e) for e in expected], dtype=torch.float64)
    torch.testing.assert_close(actual.cpu().double().flatten(), want, rtol=rtol, atol=atol)


CASES = [
    pytest.param(kind, n, k, id=f"{kind}-{n}-{k}")
    for kind in ("binary", "ties", "graded", "negative", "offset")
    for n in range(2, 10)
    for k in range(1, n + 1)
]


@on_each_device
@pytest.mark.parametrize(("kind", "n", "k"), CASES)
def test_every_row_of_the_table(device: str, kind: str, n: int, k: int) -> None:
    rewards = draw(kind, n)
    # Sixteenths near a million are exact in float32, so the only digits that may be lost are the estimator's own.
    dtype, rtol, atol = (torch.float32, 1e-6, 1e-6) if kind == "offset" else (torch.float64, 1e-12, 1e-10)
    tensor = torch.tensor([[float(r) for r in rewards]], dtype=dtype, device=device)
    rho, inside, outside = over_subsets(best, rewards, k)
    average = mean(rewards)

    def holds(name: str, expected: Sequence[Fraction]) -> None:
        check(ADVANTAGES[name](tensor, k), expected, rtol, atol)

    holds("pkpo", [k * i for i in inside])
    holds("pkpo_loo_minus_one", [k * increment(rewards, i, k) for i in range(n)])
    holds("rloo", [Fraction(n, n - 1) * (r - average) for r in rewards])
    holds("dr_grpo", [r - average for r in rewards])
    first, second = sorted(rewards, reverse=True)[:2]
    top = ADVANTAGES["top1_gap"](tensor, k)
    assert float(top.sum()) == pytest.approx(float(n * (first - second)), abs=1e-9)
    assert float(top[0, rewards.index(first)]) == pytest.approx(float(top.sum()), abs=1e-9)
    if k < n:
        holds("maxpo", l2o_by_pairs(rewards, k))
        holds("maxpo", [k * (i - o) for i, o in zip(inside, outside, strict=True)])
        holds("canonical", [i - rho for i in inside])
        factor = Fraction(n, n - 1)
        holds("pkpo_loo", [k * i - k * factor * o for i, o in zip(inside, outside, strict=True)])
    if kind == "binary":
        holds("maxrl", [(r - average) / average if average else Fraction(0) for r in rewards])
        if k < n:
            spread = math.sqrt(rho * (1 - rho))
            passk = [(float(i - rho) / spread) if spread else 0.0 for i in inside]
            check(ADVANTAGES["passk_training"](tensor, k), [Fraction(p) for p in passk], atol=1e-9)
    at_k, enough = max_at_k(tensor, k)
    assert bool(enough)
    assert float(at_k) == pytest.approx(float(rho), rel=1e-12, abs=1e-12)


OBJECTIVES: dict[str, Callable[[list[Fraction]], Fraction]] = {
    "max": lambda s: s[-1],
    "min": lambda s: s[0],
    "mean": mean,
    "median": lambda s: (s[(len(s) - 1) // 2] + s[len(s) // 2]) / 2,
    "top_m:1": lambda s: s[-1],
    "top_m:2": lambda s: mean(s[-2:]),
    "bottom_m:2": lambda s: mean(s[:2]),
    "quantile:0.25": lambda s: quantile(s, Fraction(1, 4)),
    "lower_tail:0.375": lambda s: lower_tail(s, Fraction(3, 8)),
    "lower_tail:1": mean,
}


def quantile(s: list[Fraction], q: Fraction) -> Fraction:
    below, part = divmod(q * (len(s) - 1), 1)
    return s[below] + (part * (s[below + 1] - s[below]) if part else 0)


def lower_tail(s: list[Fraction], q: Fraction) -> Fraction:
    """Integral of the sample's quantile function up to q, divided by q."""
    step = Fraction(1, len(s))
    return sum((x * max(Fraction(0), min(step, q - i * step)) for i, x in enumerate(s)), Fraction(0)) / q


@on_each_device
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["ties", "negative"])
def test_any_l_statistic(device: str, objective: str, kind: str) -> None:
    for n in range(2, 10):
        rewards = draw(kind, n)
        ranked = rank(torch.tensor([[float(r) for r in rewards]], dtype=torch.float64, device=device))
        for k in range(2 if objective.endswith("m:2") else 1, n + 1):
            rho, inside, outside = over_subsets(lambda s: OBJECTIVES[objective](sorted(s)), rewards, k)
            included = include_one(ranked, k, objective)
            check(included, inside)
            check(included.mean(), [rho])
            check(deviation(ranked, k, objective), [i - rho for i in inside])
            if k < n:
                x = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64, device=device)
                expected = [k * (i - o) for i, o in zip(inside, outside, strict=True)]
                check(maxpo(x, k, objective=objective), expected)


def test_the_lowest_rewards_add_exactly_nothing() -> None:
    x = torch.tensor([[0.1, 0.1, 0.7, 0.1, 0.3], [1.0, 0.0, 0.0, 1.0, 0.0]])
    added = increments(rank(x), 3)
    assert added[0].count_nonzero() == 2
    assert added[1].count_nonzero() == 2


ARMS = torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64)
BINARY = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


def gradient_of_objective(logits: torch.Tensor, arms: torch.Tensor, k: int, objective: str) -> torch.Tensor:
    """Gradient of E[statistic of K draws] by enumeration of all draws."""
    alpha = torch.tensor(rank_coefficients(objective, k), dtype=torch.float64)
    draws = torch.tensor(list(itertools.product(range(len(arms)), repeat=k)))
    probability = logits.log_softmax(0)[draws].sum(1).exp()
    return torch.autograd.grad((probability * (arms[draws].sort(1).values @ alpha)).sum(), logits)[0]


def expected_estimate(
    logits: torch.Tensor, arms: torch.Tensor, n: int, estimator: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Expectation of (1/N) sum_i A_i grad log pi(y_i) by enumeration of all groups."""
    outcomes = torch.tensor(list(itertools.product(range(len(arms)), repeat=n)))
    logp = logits.log_softmax(0)[outcomes]
    probability = logp.sum(1).exp().detach()
    return torch.autograd.grad((probability[:, None] * estimator(arms[outcomes]) * logp).sum() / n, logits)[0]


@pytest.mark.parametrize(
    ("name", "n", "k", "factor"),
    [
        *((name, 4, 2, 1.0) for name in ("maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one")),
        *((name, 5, 3, 1.0) for name in ("maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one")),
        *((name, 4, 4, 1.0) for name in ("pkpo", "pkpo_loo_minus_one", "top1_gap")),
        *(("canonical", n, k, (1 - k / n) / k) for n, k in ((4, 2), (5, 3))),
        ("rloo", 4, 1, 1.0),
        ("dr_grpo", 4, 1, 3 / 4),
    ],
)
def test_unbiased_gradient_for_gradient(name: str, n: int, k: int, factor: float) -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    target = factor * gradient_of_objective(logits, ARMS, k, "max")
    estimate = expected_estimate(logits, ARMS, n, partial(ADVANTAGES[name], k=k))
    torch.testing.assert_close(estimate, target, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_maxpo_is_unbiased_for_every_objective(objective: str) -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    target = gradient_of_objective(logits, ARMS, 3, objective)
    estimate = expected_estimate(logits, ARMS, 5, partial(maxpo, k=3, objective=objective))
    torch.testing.assert_close(estimate, target, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "passk_training"])
def test_normalised_estimators_are_biased(name: str) -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    k = 1 if name == "grpo" else 2
    estimate = expected_estimate(logits, BINARY, 4, partial(ADVANTAGES[name], k=k))
    assert (estimate - gradient_of_objective(logits, BINARY, k, "max")).norm() > 0.05 * estimate.norm()


def test_top1_gap_is_biased_below_k_of_n() -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    estimate = expected_estimate(logits, ARMS, 4, partial(ADVANTAGES["top1_gap"], k=2))
    assert (estimate - gradient_of_objective(logits, ARMS, 2, "max")).norm() > 0.05 * estimate.norm()


def test_maxrl_is_unbiased_for_the_truncated_log_likelihood() -> None:
    n = 5
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    target = sum(gradient_of_objective(logits, BINARY, m, "max") / m for m in range(1, n))
    torch.testing.assert_close(expected_estimate(logits, BINARY, n, ADVANTAGES["maxrl"]), target)


@pytest.mark.parametrize(("n", "k"), [(64, 8), (512, 100), (4096, 2048)])
def test_weights_of_large_groups_against_rational_binomials(n: int, k: int) -> None:
    """in_i and rho of a few random groups, with exact integer binomials."""
    rng = random.Random(n)
    x = sorted(struct.unpack("f", struct.pack("f", rng.random()))[0] for _ in range(n))
    ranked = rank(torch.tensor([x], dtype=torch.float64))
    exact = [Fraction(v) for v in x]
    rho = sum((exact[j] * math.comb(j, k - 1) for j in range(k - 1, n)), Fraction(0)) / math.comb(n, k)
    included = include_one(ranked, k)[0]
    assert float(included.mean()) == pytest.approx(float(rho), rel=1e-13)
    total = math.comb(n - 1, k - 1)
    for p in (0, n // 2, n - 3, n - 1):
        above = sum((exact[j] * math.comb(j - 1, k - 2) for j in range(max(p + 1, k - 1), n)), Fraction(0))
        assert float(included[p]) == pytest.approx(float((exact[p] * math.comb(p, k - 1) + above) / total), rel=1e-12)

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

from maxpo.estimators.advantages import ADVANTAGES, interpolated, kappa, maxpo, pkpo_loo_minus_one
from maxpo.estimators.mixing import Parameters, estimator
from maxpo.estimators.names import WITH_OBJECTIVE
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


def twice(sample: Rewards, statistic: Callable[[list[Fraction]], Fraction]) -> Fraction:
    """Mean over the members of the sample of the statistic of the sample with that member counted twice."""
    return mean([statistic(sorted([*sample, r])) for r in sample]) if sample else Fraction(0)


@on_each_device
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["ties", "negative"])
def test_minus_one_and_interpolated_of_any_l_statistic(device: str, objective: str, kind: str) -> None:
    """Also for K = N. The default of lam is the plug-in: the baseline with the others' own empirical distribution."""
    for n in range(2, 8):
        rewards = draw(kind, n)
        x = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64, device=device)
        for k in range(2 if objective.endswith("m:2") else 1, n + 1):
            _, inside, outside = over_subsets(lambda s: OBJECTIVES[objective](sorted(s)), rewards, k)
            sub, plugged = [], []
            for i in range(n):
                others = [r for j, r in enumerate(rewards) if j != i]
                subsets = list(itertools.combinations(others, k - 1))
                sub.append(mean([twice(s, OBJECTIVES[objective]) for s in subsets]))
                plugged.append(mean([OBJECTIVES[objective](sorted([r, *s])) for s in subsets for r in others]))
            minus_one = [k * (i - s) for i, s in zip(inside, sub, strict=True)]
            check(pkpo_loo_minus_one(x, k, objective=objective), minus_one)
            check(interpolated(x, k, objective=objective), [k * (i - b) for i, b in zip(inside, plugged, strict=True)])
            l2o = [k * (i - o) for i, o in zip(inside, outside, strict=True)] if k < n else minus_one
            for lam in (Fraction(0), Fraction(3, 8), Fraction(1), Fraction(-1, 2)):
                want = [(1 - lam) * m + lam * a for m, a in zip(minus_one, l2o, strict=True)]
                check(interpolated(x, k, objective=objective, lam=float(lam)), want)


def by_the_formula(rewards: Sequence[int], k: int, kappa: Fraction) -> list[Fraction]:
    """A_i = K q_i (r_i - c / (c + kappa (n - 1 - c))), with q_i counted over subsets."""
    advantages = []
    for i, r in enumerate(rewards):
        others = [o for j, o in enumerate(rewards) if j != i]
        q = mean([Fraction(not any(s)) for s in itertools.combinations(others, k - 1)])
        c, failures = sum(others), len(others) - sum(others)
        advantages.append(k * q * (r - (Fraction(c) / (c + kappa * failures) if c else 0)))
    return advantages


@on_each_device
def test_kappa(device: str) -> None:
    for n in range(2, 8):
        for c in range(n + 1):
            rewards = [1] * c + [0] * (n - c)
            x = torch.tensor([rewards], dtype=torch.float64, device=device)
            for k in range(1, n + 1):
                for value in (Fraction(1, 4), Fraction(1), Fraction(8)):
                    check(kappa(x, k, kappa=float(value)), by_the_formula(rewards, k, value))
                check(kappa(x, k, kappa=1.0), [Fraction(a) for a in interpolated(x, k)[0].tolist()])
                if k > 1:
                    check(kappa(x, k, kappa=1e15), [Fraction(a) for a in pkpo_loo_minus_one(x, k)[0].tolist()])


@pytest.mark.parametrize(
    ("rewards", "k", "plug_in", "kappa_8"),
    [
        ("1 0 0 0", 2, "2 -4/9 -4/9 -4/9", "2 -4/51 -4/51 -4/51"),
        ("1 1 0 0", 2, "8/9 8/9 -4/9 -4/9", "64/51 64/51 -2/15 -2/15"),
        ("0 1 2 3", 2, "-8/9 -2/3 2/3 28/9", ""),
        ("0 0 1 5 2", 3, "-11/8 -11/8 -9/8 83/8 1/4", ""),
        ("1 0 0 0 0 0 0 0", 4, "4" + 7 * " -16/49", "4" + 7 * " -16/343"),
        ("1 1 0 0 0 0 0 0", 4, 2 * "96/49 " + 6 * "-16/49 ", 2 * "768/343 " + 6 * "-8/147 "),
        ("1 1 1 0 0 0", 2, 3 * "18/25 " + 3 * "-12/25 ", 3 * "72/65 " + 3 * "-12/95 "),
    ],
)
def test_known_numbers(rewards: str, k: int, plug_in: str, kappa_8: str) -> None:
    x = torch.tensor([[float(r) for r in rewards.split()]], dtype=torch.float64)
    check(interpolated(x, k), [Fraction(a) for a in plug_in.split()])
    if kappa_8:
        check(kappa(x, k, kappa=8.0), [Fraction(a) for a in kappa_8.split()])


ORDERGRAD: tuple[tuple[str, int, str, str], ...] = (
    (
        "max",
        3,
        "0.3 -1.2 2.5 0.3 0.0 1.75 -0.4",
        "-1.200000000000009 -1.3050000000000088 4.47 -1.200000000000009 -1.3050000000000088 1.8449999999999886 "
        "-1.3050000000000088",
    ),
    (
        "min",
        3,
        "0.3 -1.2 2.5 0.3 0.0 1.75 -0.4",
        "0.7750000000000021 -3.18 0.7750000000000019 0.7750000000000019 0.4600000000000023 0.7750000000000019 "
        "-0.3799999999999971",
    ),
    (
        "top_m:2",
        4,
        "0.3 -1.2 2.5 0.3 0.0 1.75 -0.4",
        "-1.1266666666666687 -1.3366666666666696 4.006666666666665 -1.1266666666666705 -1.3366666666666696 "
        "2.256666666666665 -1.3366666666666696",
    ),
    (
        "max",
        4,
        "1 0 0 1 0 0 0 0",
        "1.7142857142857153 -0.5714285714285698 -0.5714285714285698 1.714285714285714 -0.5714285714285698 "
        "-0.5714285714285698 -0.5714285714285698 -0.5714285714285698",
    ),
)
"""Objective, K, rewards, and K times `lstat_advantage` of the reference implementation of arXiv 2606.06096
(paavo5/ordergrad, commit 50b89ea, numpy in float64)."""


@pytest.mark.parametrize(("objective", "k", "rewards", "advantages"), ORDERGRAD)
def test_the_reference_implementation_of_order_statistics(
    objective: str, k: int, rewards: str, advantages: str
) -> None:
    x = torch.tensor([[float(r) for r in rewards.split()]], dtype=torch.float64)
    want = torch.tensor([[float(a) for a in advantages.split()]], dtype=torch.float64)
    torch.testing.assert_close(maxpo(x, k, objective=objective), want, rtol=0, atol=2e-14)


def test_the_lowest_rewards_add_exactly_nothing() -> None:
    x = torch.tensor([[0.1, 0.1, 0.7, 0.1, 0.3], [1.0, 0.0, 0.0, 1.0, 0.0]])
    added = increments(rank(x), 3)
    assert added[0].count_nonzero() == 2
    assert kappa(torch.tensor([[0.0, 0.0, 0.0]]), 2).count_nonzero() == 0
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
        *((name, 4, 2, 1.0) for name in ("maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "interpolated")),
        *((name, 5, 3, 1.0) for name in ("maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "interpolated")),
        *((name, 4, 4, 1.0) for name in ("pkpo", "pkpo_loo_minus_one", "interpolated", "top1_gap")),
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
@pytest.mark.parametrize("name", WITH_OBJECTIVE)
def test_unbiased_for_every_objective(name: str, objective: str) -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    target = gradient_of_objective(logits, ARMS, 3, objective)
    for n in (3, 5) if name != "maxpo" else (5,):
        estimate = expected_estimate(logits, ARMS, n, partial(estimator(name, Parameters(objective=objective)), k=3))
        torch.testing.assert_close(estimate, target, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "given"), [("interpolated", {"lam": -0.7}), ("kappa", {"kappa": 9.0})])
def test_unbiased_for_every_parameter(name: str, given: dict[str, float]) -> None:
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    target = gradient_of_objective(logits, BINARY, 2, "max")
    for n in (2, 4):
        estimate = expected_estimate(logits, BINARY, n, partial(ADVANTAGES[name], k=2, **given))
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

"""The closed forms against the definitions, by enumeration of all subsets with rational arithmetic."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import torch

from maxpo.advantages import ADVANTAGES
from maxpo.metrics import max_at_k


def mean(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def best_of(rewards: list[Fraction], others: list[int], k: int, also: list[int]) -> Fraction:
    """Mean over the k-subsets S of `others` of the best reward in S and `also`; 0 for an empty set."""
    return mean(
        [
            max((rewards[i] for i in (*subset, *also)), default=Fraction(0))
            for subset in itertools.combinations(others, k)
        ]
    )


def l2o_by_definition(rewards: list[Fraction], k: int) -> list[Fraction]:
    """Increment of i, minus the mean over j of the increment of j in the group without i; times K."""
    n = len(rewards)

    def increment(i: int, group: list[int]) -> Fraction:
        others = [j for j in group if j != i]
        return best_of(rewards, others, k - 1, [i]) - best_of(rewards, others, k - 1, [])

    everyone = list(range(n))
    return [
        k * (increment(i, everyone) - mean([increment(j, [m for m in everyone if m != i]) for j in everyone if j != i]))
        for i in everyone
    ]


def pkpo_by_definition(rewards: list[Fraction], k: int) -> list[Fraction]:
    n = len(rewards)
    others = [[j for j in range(n) if j != i] for i in range(n)]
    return [k * (best_of(rewards, others[i], k - 1, [i]) - best_of(rewards, others[i], k - 1, [])) for i in range(n)]


CASES = [
    (kind, n, k) for kind in ("binary", "ties", "graded", "negative") for n in range(2, 8) for k in range(1, n + 1)
]


def draw(kind: str, n: int, seed: int) -> list[Fraction]:
    rng = random.Random(f"{kind}{n}{seed}")
    numbers = {
        "binary": lambda: Fraction(rng.random() < 0.4),
        "ties": lambda: Fraction(rng.randint(0, 2)),
        "graded": lambda: Fraction(rng.randint(0, 1000), 64),
        "negative": lambda: Fraction(rng.randint(-1000, 10), 8),
    }
    return [numbers[kind]() for _ in range(n)]


@pytest.mark.parametrize(("kind", "n", "k"), CASES)
def test_against_enumeration(kind: str, n: int, k: int) -> None:
    for seed in range(3):
        rewards = draw(kind, n, seed)
        tensor = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64)

        def check(actual: torch.Tensor, expected: list[Fraction]) -> None:
            want = torch.tensor([float(e) for e in expected], dtype=torch.float64)
            torch.testing.assert_close(actual[0], want, rtol=1e-12, atol=1e-10)

        check(ADVANTAGES["pkpo_loo_minus_one"](tensor, k), pkpo_by_definition(rewards, k))
        rho, enough = max_at_k(tensor, k)
        assert bool(enough)
        assert float(rho) == pytest.approx(float(best_of(rewards, list(range(n)), k, [])), rel=1e-12, abs=1e-12)
        if k < n:
            check(ADVANTAGES["maxpo"](tensor, k), l2o_by_definition(rewards, k))


@pytest.mark.parametrize(
    ("name", "n", "k"),
    [("maxpo", 4, 2), ("maxpo", 5, 3), ("pkpo_loo_minus_one", 4, 2), ("pkpo_loo_minus_one", 4, 4), ("rloo", 4, 1)],
)
def test_unbiased_gradient_for_gradient(name: str, n: int, k: int) -> None:
    """Every outcome of N draws from a softmax over three arms, weighted by its probability."""
    logits = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64)

    best = torch.zeros((), dtype=torch.float64)
    logp = logits.log_softmax(0)
    for arms in itertools.product(range(3), repeat=k):
        best = best + logp[list(arms)].sum().exp() * rewards[list(arms)].max()
    (target,) = torch.autograd.grad(best, logits)

    outcomes = torch.tensor(list(itertools.product(range(3), repeat=n)))
    advantages = ADVANTAGES[name](rewards[outcomes], k)
    logp = logits.log_softmax(0)[outcomes]
    probability = logp.sum(1).exp().detach()
    estimate = (probability[:, None] * advantages * logp).sum() / n
    (gradient,) = torch.autograd.grad(estimate, logits)
    torch.testing.assert_close(gradient, target, rtol=1e-10, atol=1e-12)

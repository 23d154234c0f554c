"""K over a run, and the pass rates of prompts."""

from __future__ import annotations

import pytest

from maxpo.config import AlgorithmConfig
from maxpo.estimators.k_schedule import PassRates, adapted_k, mix_weight, scheduled_k
from maxpo.estimators.objectives import rank_coefficients


def test_constant_linear_and_stepwise() -> None:
    def ks(**settings: object) -> list[int]:
        return [scheduled_k(AlgorithmConfig(**settings), step, 9) for step in range(1, 10)]  # type: ignore[arg-type]

    assert ks(k=3) == [3] * 9
    assert ks(k=3, k_schedule="linear", k_values=[8, 1]) == [8, 7, 6, 5, 4, 4, 3, 2, 1]
    assert ks(k=3, k_schedule="stepwise", k_values=[8, 4, 1], k_steps=[3, 7]) == [8, 8, 4, 4, 4, 4, 1, 1, 1]
    assert ks(k=3, k_schedule="stepwise", k_values=[5]) == [5] * 9
    assert scheduled_k(AlgorithmConfig(k_schedule="linear", k_values=[8, 1]), 1, 1) == 8


def test_mix_weight() -> None:
    assert [mix_weight([0.25], step, 5) for step in (1, 5)] == [0.25, 0.25]
    assert [mix_weight([1.0, 0.0], step, 5) for step in range(1, 6)] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("p", [0.021, 0.053, 0.11, 0.23, 0.35, 0.495, 0.6, 0.9])
def test_adapted_k_is_where_max_at_k_pulls_hardest(p: float) -> None:
    best = max(range(1, 200), key=lambda k: k * (1 - p) ** (k - 1))
    assert adapted_k(p, 1, 1000) == best
    assert adapted_k(p, 3, 7) == min(7, max(3, best))


def test_adapted_k_at_the_ends() -> None:
    assert (adapted_k(0.0, 2, 9), adapted_k(1.0, 2, 9)) == (9, 2)


def test_pass_rates_are_pulled_towards_all_prompts_and_forget() -> None:
    rates = PassRates()
    assert rates("a") == 0.0
    rates.observe({"a": [True, True, False, False], "b": [False] * 4})
    assert rates("new") == pytest.approx(2 / 8)
    assert rates("a") == pytest.approx((2 + 4 * 2 / 8) / (4 + 4))
    assert rates("b") == pytest.approx((0 + 4 * 2 / 8) / (4 + 4))
    rates.observe({"a": [False] * 4})
    overall = (2 / 2) / (8 / 2 + 4)
    assert rates("a") == pytest.approx((2 / 2 + 4 * overall) / (4 / 2 + 4 + 4))


@pytest.mark.parametrize(
    ("objective", "k", "expected"),
    [
        ("max", 3, [0, 0, 1]),
        ("min", 3, [1, 0, 0]),
        ("median", 4, [0, 0.5, 0.5, 0]),
        ("top_m:2", 4, [0, 0, 0.5, 0.5]),
        ("bottom_m:1", 1, [1]),
        ("quantile:1", 3, [0, 0, 1]),
        ("quantile:0.25", 3, [0.5, 0.5, 0]),
        ("lower_tail:0.375", 4, pytest.approx([2 / 3, 1 / 3, 0, 0])),
    ],
)
def test_coefficients_by_hand(objective: str, k: int, expected: list[float]) -> None:
    assert rank_coefficients(objective, k) == expected


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        ("best", r"there is no objective 'best'\. Known objectives: max, min"),
        ("max:2", "there is no objective"),
        ("top_m", "M must be a whole number"),
        ("top_m:0", "M must be a whole number"),
        ("bottom_m:1.5", "M must be a whole number"),
        ("top_m:5", "M = 5 of K = 4"),
        ("quantile:1.1", "0 <= Q <= 1"),
        ("quantile:nan", "0 <= Q <= 1"),
        ("lower_tail:0", "0 < Q <= 1"),
        ("lower_tail", "Q must be a number"),
    ],
)
def test_objectives_that_there_are_not(objective: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rank_coefficients(objective, 4)

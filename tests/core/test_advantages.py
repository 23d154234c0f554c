"""Numbers worked by hand, and what the estimators refuse."""

from __future__ import annotations

import math

import pytest
import torch

from maxpo.advantages import ADVANTAGES, min_valid
from maxpo.config import ADVANTAGE_NAMES


def rows(*groups: list[float]) -> torch.Tensor:
    return torch.tensor(groups, dtype=torch.float32)


@pytest.mark.parametrize(
    ("rewards", "k", "expected"),
    [
        ([1, 0, 0, 0], 2, [2, -2 / 3, -2 / 3, -2 / 3]),
        ([1, 1, 0, 0], 2, [2 / 3, 2 / 3, -2 / 3, -2 / 3]),
        ([0, 1, 2, 3], 2, [-4 / 3, -4 / 3, 0, 8 / 3]),
        ([0, 0, 1, 5, 2], 3, [-11 / 4, -11 / 4, -11 / 4, 39 / 4, -3 / 2]),
        ([3, 1, 4, 1, 5, 9], 1, [-1, -17 / 5, 1 / 5, -17 / 5, 7 / 5, 31 / 5]),
        ([1, 0, 0, 0, 0, 0, 0, 0], 4, [4] + [-4 / 7] * 7),
    ],
)
def test_maxpo_by_hand(rewards: list[float], k: int, expected: list[float]) -> None:
    torch.testing.assert_close(ADVANTAGES["maxpo"](rows(rewards), k), rows(expected))


def test_other_estimators_by_hand() -> None:
    r = rows([1, 0, 0, 1])
    torch.testing.assert_close(ADVANTAGES["rloo"](r), rows([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    torch.testing.assert_close(ADVANTAGES["dr_grpo"](r), rows([0.5, -0.5, -0.5, 0.5]))
    std = math.sqrt(4 * 0.25 / 3)
    torch.testing.assert_close(ADVANTAGES["grpo"](r), rows([0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std]))
    # Rewards 2, 0, 1 and K = 2: in = (2, 3/2, 3/2), sub = means of the other two = (1/2, 3/2, 1).
    torch.testing.assert_close(ADVANTAGES["pkpo_loo_minus_one"](rows([2, 0, 1]), 2), rows([3, 0, 1]))
    torch.testing.assert_close(ADVANTAGES["pkpo_loo_minus_one"](rows([2, 0, 1]), 1), rows([2, 0, 1]))


@pytest.mark.parametrize("n", [2048, 4096])
def test_large_groups_stay_finite_and_centred(n: int) -> None:
    r = torch.rand(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = ADVANTAGES["maxpo"](r, n // 2)
    assert bool(torch.isfinite(a).all())
    assert a.sum(1).abs().max() < 1e-9 * a.abs().sum(1).max()
    assert a.abs().max() > 0


def test_groups_with_too_few_valid_samples_get_zero_and_the_others_their_own_size() -> None:
    r = rows([1, 0, 0, 9, 9], [1, 0, 9, 9, 9])
    valid = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    a = ADVANTAGES["maxpo"](r, 2, valid)
    torch.testing.assert_close(a[0], torch.cat([ADVANTAGES["maxpo"](rows([1, 0, 0]), 2)[0], torch.zeros(2)]))
    assert a[1].abs().max() == 0


def test_refusals() -> None:
    r = rows([1, 0, 0, 0])
    for k in (0, 4, 5):
        with pytest.raises(ValueError, match=rf"k = {k}.*N = 4.*1 <= k <= 3"):
            ADVANTAGES["maxpo"](r, k)
    ADVANTAGES["pkpo_loo_minus_one"](r, 4)
    with pytest.raises(ValueError, match="not finite"):
        ADVANTAGES["maxpo"](rows([1, float("nan"), 0, 0]), 2)
    with pytest.raises(ValueError, match=r"float tensor \[G, N\]"):
        ADVANTAGES["rloo"](torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="valid must be bool"):
        ADVANTAGES["rloo"](r, valid=torch.ones(1, 3, dtype=torch.bool))


def test_a_nan_that_is_not_valid_does_no_harm() -> None:
    a = ADVANTAGES["maxpo"](rows([1, float("nan"), 0, 0]), 2, torch.tensor([[True, False, True, True]]))
    torch.testing.assert_close(a, torch.tensor([[2.0, 0.0, -1.0, -1.0]]))


def test_a_large_offset_keeps_the_digits_of_float32_rewards() -> None:
    r = rows([0, 1, 2, 3])
    torch.testing.assert_close(ADVANTAGES["maxpo"](r + 1e6, 2), ADVANTAGES["maxpo"](r, 2), rtol=1e-6, atol=0)


def test_min_valid_is_where_an_estimator_starts_to_speak() -> None:
    for name, estimator in ADVANTAGES.items():
        need = min_valid(name, 3)
        for count in range(1, 7):
            valid = torch.arange(7)[None] < count
            said = bool(estimator(rows([5, 1, 2, 7, 3, 9, 4]), 3, valid).abs().max() > 0)
            assert said == (count >= need), (name, count)


def test_the_configuration_knows_exactly_these() -> None:
    assert set(ADVANTAGE_NAMES) == set(ADVANTAGES)

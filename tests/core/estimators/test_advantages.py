"""Numbers worked by hand, and what the estimators refuse."""

from __future__ import annotations

import math

import pytest
import torch

from maxpo.config import AlgorithmConfig
from maxpo.estimators.advantages import ADVANTAGES, interpolated, kappa, maxpo
from maxpo.estimators.arguments import min_valid, prepare
from maxpo.estimators.mixing import mixed, nonzero
from maxpo.estimators.names import ADVANTAGE_NAMES, BEYOND_K
from maxpo.types import Mix
from tests.devices import on_each_device


def rows(*groups: list[float]) -> torch.Tensor:
    return torch.tensor(groups, dtype=torch.float32)


@on_each_device
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
def test_maxpo_by_hand(device: str, rewards: list[float], k: int, expected: list[float]) -> None:
    torch.testing.assert_close(ADVANTAGES["maxpo"](rows(rewards).to(device), k), rows(expected).to(device))
    n = len(rewards)
    canonical = [(n - k) / (n * k) * a for a in expected]
    torch.testing.assert_close(ADVANTAGES["canonical"](rows(rewards).to(device), k), rows(canonical).to(device))


def test_other_estimators_by_hand() -> None:
    r = rows([1, 0, 0, 1])
    torch.testing.assert_close(ADVANTAGES["rloo"](r), rows([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    torch.testing.assert_close(ADVANTAGES["dr_grpo"](r), rows([0.5, -0.5, -0.5, 0.5]))
    std = math.sqrt(4 * 0.25 / 3)
    torch.testing.assert_close(ADVANTAGES["grpo"](r), rows([0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std]))
    # Rewards 2, 0, 1 and K = 2: in = (2, 3/2, 3/2), sub = means of the other two = (1/2, 3/2, 1).
    torch.testing.assert_close(ADVANTAGES["pkpo_loo_minus_one"](rows([2, 0, 1]), 2), rows([3, 0, 1]))
    torch.testing.assert_close(ADVANTAGES["pkpo_loo_minus_one"](rows([2, 0, 1]), 1), rows([2, 0, 1]))
    # out = (1, 2, 2), so K in - K 3/2 out = (4 - 3, 3 - 6, 3 - 6).
    torch.testing.assert_close(ADVANTAGES["pkpo"](rows([2, 0, 1]), 2), rows([4, 3, 3]))
    torch.testing.assert_close(ADVANTAGES["pkpo_loo"](rows([2, 0, 1]), 2), rows([1, -3, -3]))
    torch.testing.assert_close(ADVANTAGES["top1_gap"](rows([2, 0, 1]), 2), rows([3, 0, 0]))
    torch.testing.assert_close(ADVANTAGES["maxrl"](rows([1, 0, 0], [0, 0, 0])), rows([2, -1, -1], [0, 0, 0]))
    # One success of three, K = 2: in = (1, 1/2, 1/2), rho = 2/3.
    passk = ADVANTAGES["passk_training"](rows([1, 0, 0], [1, 1, 1]), 2)
    root = math.sqrt(2 / 9)
    torch.testing.assert_close(passk, rows([1 / 3 / root, -1 / 6 / root, -1 / 6 / root], [0, 0, 0]))


@pytest.mark.parametrize(("success", "failure", "c"), [(4, -4 / 7, 1), (4 * 15 / 35, 4 * (5 / 35 - 10 / 35), 2)])
def test_maxpo_with_c_successes_of_eight(success: float, failure: float, c: int) -> None:
    """K C(N-c, K) / C(N-1, K), and K [C(N-1-c, K) / C(N-1, K) - C(N-1-c, K-1) / C(N-1, K-1)], for K = 4."""
    expected = rows([success] * c + [failure] * (8 - c))
    torch.testing.assert_close(ADVANTAGES["maxpo"](rows([1.0] * c + [0.0] * (8 - c)), 4), expected)


@on_each_device
@pytest.mark.parametrize("objective", ["max", "min", "median", "top_m:100", "lower_tail:0.3"])
@pytest.mark.parametrize("n", [2048, 4096])
def test_large_groups_stay_finite_and_centred(device: str, n: int, objective: str) -> None:
    r = torch.rand(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    a = maxpo(r, n // 2, objective=objective)
    assert bool(torch.isfinite(a).all())
    assert a.sum(1).abs().max() < 1e-9 * a.abs().sum(1).max()
    assert a.abs().max() > 0


@pytest.mark.parametrize("name", ["maxpo", "pkpo_loo", "pkpo_loo_minus_one"])
def test_each_group_may_have_its_own_k(name: str) -> None:
    r = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    together = ADVANTAGES[name](r, torch.tensor([1, 4, 2]))
    for row, k in enumerate((1, 4, 2)):
        torch.testing.assert_close(together[row], ADVANTAGES[name](r[row : row + 1], k)[0])


def test_mixing_two_estimators() -> None:
    r = rows([1, 0, 0, 1], [0, 0, 1, 0])
    a, b = ADVANTAGES["maxpo"](r, 2), ADVANTAGES["grpo"](r)
    both = AlgorithmConfig(mix_with="grpo")
    torch.testing.assert_close(mixed(both, Mix(weight=0.25), r, 2), 0.75 * a + 0.25 * b)
    torch.testing.assert_close(mixed(AlgorithmConfig(), Mix(), r, 2), a)
    torch.testing.assert_close(mixed(AlgorithmConfig(objective="min"), Mix(), r, 2), maxpo(r, 2, objective="min"))
    assert not torch.allclose(maxpo(r, 2, objective="min"), a)


def test_every_parameter_of_a_step_reaches_the_estimators_that_name_it() -> None:
    r = rows([1, 0, 0, 1, 0], [0, 0, 1, 0, 0])
    for name, given, want in (
        ("interpolated", {"mix": Mix(lam=0.3)}, interpolated(r, 2, lam=0.3)),
        ("interpolated", {"objective": "top_m:2"}, interpolated(r, 2, objective="top_m:2")),
        ("pkpo_loo_minus_one", {"objective": "mean"}, ADVANTAGES["rloo"](r)),
        ("kappa", {"kappa": 8.0}, kappa(r, 2, kappa=8.0)),
    ):
        mix = given.pop("mix", Mix())
        torch.testing.assert_close(mixed(AlgorithmConfig(advantage=name, **given), mix, r, 2), want)
        assert not torch.allclose(mixed(AlgorithmConfig(advantage=name), Mix(), r, 2), want), name


def test_a_weight_that_float32_cannot_hold_and_groups_of_different_sizes() -> None:
    """A group of n = K valid samples has no L2O: it gets the other estimator alone."""
    r = rows([1, 0, 0, 9, 9], [1, 0, 1, 0, 0]).double()
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    both = [ADVANTAGES[name](r, 3, valid) for name in ("pkpo_loo_minus_one", "maxpo")]
    own = interpolated(r, 3, valid, lam=0.1)
    torch.testing.assert_close(own[0], both[0][0], rtol=0, atol=0)
    torch.testing.assert_close(own[1], 0.9 * both[0][1] + 0.1 * both[1][1], rtol=1e-15, atol=1e-15)


def test_groups_with_too_few_valid_samples_get_zero_and_the_others_their_own_size() -> None:
    r = rows([1, 0, 0, 9, 9], [1, 0, 9, 9, 9])
    valid = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    a = ADVANTAGES["maxpo"](r, 2, valid)
    torch.testing.assert_close(a[0], torch.cat([ADVANTAGES["maxpo"](rows([1, 0, 0]), 2)[0], torch.zeros(2)]))
    assert a[1].abs().max() == 0


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_valid_groups_with_one_k_take_the_arithmetic_without_a_mask(name: str) -> None:
    r = rows([1, 0, 0, 1, 0], [0, 0, 1, 0, 0])
    groups = prepare(name, r, torch.tensor([2, 2]), torch.ones(2, 5, dtype=torch.bool))
    assert groups.valid is None and isinstance(groups.k_index, int) and isinstance(groups.ranked().sizes, int)
    # Another group with an invalid sample does not change the values of these two.
    more, valid = torch.cat([r, r[:1]]), torch.ones(3, 5, dtype=torch.bool)
    valid[2, 4] = False
    masked = ADVANTAGES[name](more, torch.tensor([2, 2, 3]), valid)
    torch.testing.assert_close(ADVANTAGES[name](r, torch.tensor([2, 2]), valid[:2]), masked[:2], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("k", [0, 4, 5])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k = {k}.*N = 4.*1 <= k <= 3"):
        ADVANTAGES["maxpo"](rows([1, 0, 0, 0]), k)


def test_the_range_of_k_is_that_of_the_estimator_and_counts_for_every_group() -> None:
    ADVANTAGES["pkpo_loo_minus_one"](rows([1, 0, 0, 0]), 4)
    with pytest.raises(ValueError, match=r"k = 4.*1 <= k <= 3"):
        ADVANTAGES["maxpo"](rows([1, 0, 0, 0], [1, 0, 0, 0]), torch.tensor([3, 4]))


@pytest.mark.parametrize(
    "k", [torch.tensor([2.0]), torch.tensor([2, 2]), torch.tensor([True])], ids=["float", "wrong length", "bool"]
)
def test_a_tensor_of_k_must_hold_one_integer_for_each_group(k: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"integers \[1\]"):
        ADVANTAGES["maxpo"](rows([1, 0, 0, 0]), k)


def test_rewards_and_masks_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        ADVANTAGES["maxpo"](rows([1, float("nan"), 0, 0]), 2)
    with pytest.raises(ValueError, match=r"float tensor \[G, N\]"):
        ADVANTAGES["rloo"](torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="valid must be bool"):
        ADVANTAGES["rloo"](rows([1, 0, 0, 0]), valid=torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [0.5, -1.0])
@pytest.mark.parametrize("name", ["passk_training", "maxrl", "kappa"])
def test_a_formula_for_rewards_of_0_and_1_refuses_others(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*rewards of 0 and 1.*a reward of {wrong:g}"):
        ADVANTAGES[name](rows([1, 0, wrong, 0]), 2)
    # An invalid sample may hold any number.
    ADVANTAGES[name](rows([1, 0, wrong, 0]), 2, torch.tensor([[True, True, False, True]]))


@pytest.mark.parametrize(
    ("name", "rewards"),
    [("rloo", rows([1])), ("maxpo", rows([1])), ("grpo", torch.zeros(0, 4))],
    ids=["rloo", "maxpo", "grpo"],
)
def test_groups_without_enough_samples_are_refused(name: str, rewards: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"{name}: groups need 2 samples"):
        ADVANTAGES[name](rewards, 1)


def test_a_nan_that_is_not_valid_does_no_harm() -> None:
    a = ADVANTAGES["maxpo"](rows([1, float("nan"), 0, 0]), 2, torch.tensor([[True, False, True, True]]))
    torch.testing.assert_close(a, torch.tensor([[2.0, 0.0, -1.0, -1.0]]))


def test_a_large_offset_keeps_the_digits_of_float32_rewards() -> None:
    r = rows([0, 1, 2, 3])
    torch.testing.assert_close(ADVANTAGES["maxpo"](r + 1e6, 2), ADVANTAGES["maxpo"](r, 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_estimator_gives_advantages_from_min_valid_samples_on(name: str) -> None:
    rewards: list[float] = (
        [1, 0, 0, 0, 1, 0, 0] if name in ("passk_training", "maxrl", "kappa") else [5, 1, 2, 7, 3, 9, 4]
    )
    for count in range(1, 7):
        advantages = ADVANTAGES[name](rows(rewards), 3, torch.arange(7)[None] < count)
        assert bool(advantages.abs().max() > 0) == (count >= min_valid(name, 3)), count


@pytest.mark.parametrize(
    "name", ["maxpo", "canonical", "pkpo_loo_minus_one", "interpolated", "top1_gap", "rloo", "grpo", "dr_grpo"]
)
@pytest.mark.parametrize(("reward", "n"), [(0.1, 6), (1e5 + 0.1, 7), (1e9 + 0.1, 7)])
def test_equal_rewards_are_exactly_no_signal(reward: float, n: int, name: str) -> None:
    r = torch.full((2, n), reward, dtype=torch.float64)
    assert ADVANTAGES[name](r, 2).count_nonzero() == 0
    assert ADVANTAGES[name](r, 2, torch.arange(2 * n).view(2, n) % n < n - 1).count_nonzero() == 0


def test_small_advantages_are_signal_and_rounding_is_not() -> None:
    everything = torch.ones(1, 64, dtype=torch.bool)
    r = (torch.arange(64)[None] < 20).double()
    small = maxpo(r, 32)
    assert 1e-8 < small.abs().max() < 1e-6
    assert bool(nonzero(small, r, everything).all())
    assert not nonzero(torch.full_like(r, 1e-13), r, everything).any()
    assert nonzero(small, r, everything & (r > 0)).sum() == 20


@pytest.mark.parametrize("c", [15, 25, 30])
def test_passk_training_is_centred_where_success_is_almost_sure(c: int) -> None:
    a = ADVANTAGES["passk_training"]((torch.arange(128)[None] < c).double(), 64)
    assert a.abs().max() > 0
    assert a.sum().abs() < 1e-9 * a.abs().max()


def test_the_names_without_torch_are_exactly_those_of_the_estimators() -> None:
    assert tuple(ADVANTAGES) == ADVANTAGE_NAMES
    assert BEYOND_K.keys() <= ADVANTAGES.keys()

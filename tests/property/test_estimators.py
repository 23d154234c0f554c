"""Properties that hold for any rewards, on every device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxpo.estimators.advantages import ADVANTAGES, AdvantageFn, maxpo
from maxpo.estimators.arguments import min_valid
from maxpo.estimators.objectives import OBJECTIVES
from tests.devices import on_each_device

CENTRED = ("maxpo", "canonical", "passk_training", "rloo", "grpo", "dr_grpo", "maxrl")
BINARY_ONLY = ("passk_training", "maxrl", "kappa")
SHIFT_INVARIANT = ("maxpo", "canonical", "pkpo_loo_minus_one", "interpolated", "top1_gap", "rloo", "dr_grpo")
SCALE_EQUIVARIANT = (*SHIFT_INVARIANT, "pkpo", "pkpo_loo")
WORDS = [o.replace("M", "1").replace("Q", "0.3") for o in OBJECTIVES]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def groups(draw: st.DrawFn) -> Case:
    """Rewards [G, N], which of them are valid, and a K for each group."""
    n = draw(st.integers(3, 12))
    g = draw(st.integers(1, 4))
    value = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-50, 50, width=32))
    rewards = draw(st.lists(st.lists(value, min_size=n, max_size=n), min_size=g, max_size=g))
    valid = draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=g, max_size=g))
    k = draw(st.lists(st.integers(1, n - 1), min_size=g, max_size=g))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid), torch.tensor(k)


def estimators(case: Case, device: str) -> Iterator[tuple[str, AdvantageFn, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Every estimator with rewards that it accepts, all on the device."""
    rewards, valid, k = (t.to(device) for t in case)
    for name, estimator in ADVANTAGES.items():
        yield name, estimator, (rewards > 0).double() if name in BINARY_ONLY else rewards, valid, k


@on_each_device
@given(case=groups())
@settings(max_examples=150, deadline=None)
def test_centred(device: str, case: Case) -> None:
    for name, estimator, rewards, valid, k in estimators(case, device):
        if name in CENTRED:
            a = estimator(rewards, k, valid)
            assert float(a.sum(1).abs().max()) <= 1e-9 * (1 + float(a.abs().max())), name
    rewards, valid, k = (t.to(device) for t in case)
    for objective in WORDS:
        a = maxpo(rewards, k, valid, objective=objective)
        assert float(a.sum(1).abs().max()) <= 1e-9 * (1 + float(a.abs().max())), objective


@on_each_device
@given(case=groups())
@settings(max_examples=150, deadline=None)
def test_masked_is_absent_and_batched_is_one_at_a_time(device: str, case: Case) -> None:
    for name, estimator, rewards, valid, k in estimators(case, device):
        together = estimator(rewards, k, valid)
        assert float(together[~valid].abs().sum()) == 0.0, name
        for row, k_row in enumerate(k.tolist()):
            present = rewards[row, valid[row]][None]
            if present.shape[1] < min_valid(name, k_row):
                assert float(together[row].abs().sum()) == 0.0, name
            else:
                torch.testing.assert_close(together[row, valid[row]], estimator(present, k_row)[0], **TOLERANCE)


@on_each_device
@given(case=groups(), rng=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_permutation_equivariant(device: str, case: Case, rng: object) -> None:
    order = list(range(case[0].shape[1]))
    rng.shuffle(order)  # type: ignore[attr-defined]
    for name, estimator, rewards, valid, k in estimators(case, device):
        moved = estimator(rewards[:, order], k, valid[:, order])
        stayed = estimator(rewards, k, valid)[:, order]
        if name == "top1_gap":  # Of equal rewards any may stand first; the gap is 0 then.
            moved, stayed = moved.sum(1), stayed.sum(1)
        torch.testing.assert_close(moved, stayed, **TOLERANCE)


@on_each_device
@given(case=groups(), shift=st.floats(-1000, 1000), scale=st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_shift_invariant_and_scale_equivariant(device: str, case: Case, shift: float, scale: float) -> None:
    for name, estimator, rewards, valid, k in estimators(case, device):
        if name in ("pkpo_loo_minus_one", "interpolated"):
            k = k.clamp(min=2)  # With K = 1 there is nothing to compare with, and the reward itself is the increment.
        if name in SCALE_EQUIVARIANT:
            moved = scale * rewards + (shift if name in SHIFT_INVARIANT else 0.0)
            expected = scale * estimator(rewards, k, valid)
            torch.testing.assert_close(estimator(moved, k, valid), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["pkpo", "pkpo_loo"])
def test_a_shift_moves_the_estimators_that_are_said_not_to_remove_it(name: str) -> None:
    r = torch.tensor([[0.0, 1.0, 0.0, 0.5]])
    assert (ADVANTAGES[name](r + 10, 2) - ADVANTAGES[name](r, 2)).abs().min() > 1


@on_each_device
@given(case=groups())
@settings(max_examples=100, deadline=None)
def test_maxpo_with_k_one_is_rloo_and_pkpo_is_never_negative(device: str, case: Case) -> None:
    rewards, valid, k = (t.to(device) for t in case)
    others = torch.where(valid, rewards, 0.0).sum(1, keepdim=True) - rewards
    count = valid.sum(1, keepdim=True)
    by_hand = torch.where(valid & (count > 1), rewards - others / (count - 1).clamp(min=1), 0.0)
    torch.testing.assert_close(maxpo(rewards, 1, valid), by_hand, **TOLERANCE)
    torch.testing.assert_close(ADVANTAGES["rloo"](rewards, k, valid), by_hand, **TOLERANCE)
    assert float(ADVANTAGES["pkpo_loo_minus_one"](rewards, k.clamp(min=2), valid).min()) >= -1e-9

"""Properties that hold for any rewards."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxpo.advantages import ADVANTAGES

CENTRED = ("maxpo", "rloo", "grpo", "dr_grpo")


@st.composite
def groups(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    n = draw(st.integers(3, 12))
    k = draw(st.integers(1, n - 1))
    g = draw(st.integers(1, 4))
    value = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-50, 50, width=32))
    rewards = draw(st.lists(st.lists(value, min_size=n, max_size=n), min_size=g, max_size=g))
    valid = draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=g, max_size=g))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid), k


@given(groups())
@settings(max_examples=150, deadline=None)
def test_centred(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    rewards, valid, k = case
    for name in CENTRED:
        a = ADVANTAGES[name](rewards, k, valid)
        assert float(a.sum(1).abs().max()) <= 1e-9 * (1 + float(a.abs().max())), name


@given(groups())
@settings(max_examples=150, deadline=None)
def test_masked_is_absent_and_batched_is_one_at_a_time(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    rewards, valid, k = case
    for name, estimator in ADVANTAGES.items():
        together = estimator(rewards, k, valid)
        assert float(together[~valid].abs().sum()) == 0.0, name
        for row in range(len(rewards)):
            present = rewards[row, valid[row]][None]
            if present.shape[1] <= k or present.shape[1] < 2:
                continue
            torch.testing.assert_close(together[row, valid[row]], estimator(present, k)[0], rtol=1e-9, atol=1e-9)


@given(groups(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_permutation_equivariant(case: tuple[torch.Tensor, torch.Tensor, int], rng: object) -> None:
    rewards, valid, k = case
    order = list(range(rewards.shape[1]))
    rng.shuffle(order)  # type: ignore[attr-defined]
    for estimator in ADVANTAGES.values():
        torch.testing.assert_close(
            estimator(rewards[:, order], k, valid[:, order]),
            estimator(rewards, k, valid)[:, order],
            rtol=1e-9,
            atol=1e-9,
        )


@given(groups(), st.floats(-1000, 1000), st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_shift_invariant_and_scale_equivariant(
    case: tuple[torch.Tensor, torch.Tensor, int], shift: float, scale: float
) -> None:
    rewards, valid, k = case
    for name in ("maxpo", "rloo", "dr_grpo"):
        expected = scale * ADVANTAGES[name](rewards, k, valid)
        torch.testing.assert_close(ADVANTAGES[name](scale * rewards + shift, k, valid), expected, rtol=1e-7, atol=1e-7)


@given(groups())
@settings(max_examples=100, deadline=None)
def test_maxpo_with_k_one_is_rloo_and_pkpo_is_never_negative(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    rewards, valid, k = case
    others = torch.where(valid, rewards, 0.0).sum(1, keepdim=True) - rewards
    count = valid.sum(1, keepdim=True)
    by_hand = torch.where(valid & (count > 1), rewards - others / (count - 1).clamp(min=1), 0.0)
    torch.testing.assert_close(ADVANTAGES["maxpo"](rewards, 1, valid), by_hand, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ADVANTAGES["rloo"](rewards, k, valid), by_hand, rtol=1e-9, atol=1e-9)
    if k > 1:
        assert float(ADVANTAGES["pkpo_loo_minus_one"](rewards, k, valid).min()) >= -1e-9

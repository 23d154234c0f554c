"""Losses, aggregation, log-probabilities: numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from maxpo.config import AlgorithmConfig
from maxpo.losses.aggregation import Aggregation, sequence_weight, weighted_sum
from maxpo.losses.logprobs import token_logprobs
from maxpo.losses.policy import LOSSES, LossInput, kl_estimate, truncated_importance_weights, trusted


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor([math.log(r) for r in ratios])


def row(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, **settings: Any) -> LossInput:
    """Two sequences: the first half of the tokens, and the rest. All tokens count but the last one."""
    mask = torch.ones(len(new), dtype=torch.bool)
    mask[-1] = False
    sequence = (torch.arange(len(new)) >= len(new) // 2).long()
    given = AlgorithmConfig(**{"clip_low": 0.2, "clip_high": 0.3} | settings)
    return LossInput(
        logprobs=new, old_logprobs=old, advantages=advantages, mask=mask, sequence=sequence, algorithm=given
    )


RATIOS = (1.0, 1.5, 1.5, 0.5, 0.5, 1.25, 4.0, 0.1)
ADVANTAGES = (2.0, 1.0, -1.0, 1.0, -1.0, 1.0, -2.0, 3.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # min(rho A, clip(rho) A), negated
        ("ppo_clip", (-2.0, -1.3, 1.5, -0.5, 0.8, -1.25, 8.0, -0.3)),
        # at most c |A| with c = 3
        ("dual_clip", (-2.0, -1.3, 1.5, -0.5, 0.8, -1.25, 6.0, -0.3)),
        # 4 / tau sigmoid(tau (rho - 1)) A, negated
        (
            "sapo",
            tuple(
                -4 / tau / (1 + math.exp(-tau * (r - 1))) * a
                for r, a in zip(RATIOS, ADVANTAGES, strict=True)
                for tau in [1.0 if a > 0 else 1.05]
            ),
        ),
    ],
)
def test_losses_by_hand(name: str, expected: tuple[float, ...]) -> None:
    loss = LOSSES[name](row(logs(*RATIOS), torch.zeros(8), torch.tensor(ADVANTAGES)))
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_cispo_weighs_every_token_and_lets_no_gradient_through_the_weight() -> None:
    new = logs(*RATIOS).requires_grad_()
    LOSSES["cispo"](row(new, torch.zeros(8), torch.tensor(ADVANTAGES))).sum().backward()
    weights = [min(max(r, 0.8), 1.3) for r in RATIOS]
    torch.testing.assert_close(new.grad, -torch.tensor(weights) * torch.tensor(ADVANTAGES))


def test_gspo_has_one_ratio_for_a_sequence_and_the_gradient_of_its_mean() -> None:
    """The loss of a sequence, its mean over tokens, has the gradient of -min(s A, clip(s) A)."""
    new = torch.tensor([0.05, -0.1, 0.2, 0.02, 0.9, 0.8, 0.7, 9.0], requires_grad=True)
    for advantages in ([1.0] * 4 + [1.0] * 4, [-1.0] * 4 + [-1.0] * 4):
        x = row(new, torch.zeros(8), torch.tensor(advantages))
        loss = LOSSES["gspo"](x)
        got = torch.autograd.grad(loss[:4].mean() + loss[4:7].mean(), new)[0]
        total = torch.zeros(())
        for tokens in (new[:4], new[4:7]):  # the last token does not count
            s = tokens.mean().exp()
            total = total - torch.minimum(s * advantages[0], s.clamp(0.8, 1.3) * advantages[0])
        torch.testing.assert_close(got, torch.autograd.grad(total, new)[0])
        torch.testing.assert_close(loss[:4].mean() + loss[4:7].mean(), total)
    assert float(got[4:].abs().sum()) > 0  # with a negative advantage the ratio above the bound is not cut


@pytest.mark.parametrize("name", LOSSES)
def test_at_ratio_one_every_loss_has_the_gradient_of_plain_policy_gradient_and_old_gets_none(name: str) -> None:
    new = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    old = new.detach().clone().requires_grad_()
    advantages = torch.tensor([3.0, 3.0, -1.0, -1.0])
    LOSSES[name](row(new, old.detach(), advantages)).sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_tokens_and_sequences_out_of_bounds_are_not_trusted() -> None:
    gap = logs(1.0, 3.0, 0.4, 1.0, 1.5, 1.5, 1.5, 100.0)
    x = row(gap, gap, gap)

    def kept(**settings: Any) -> list[int]:
        return trusted(gap, x.sequence, x.mask, AlgorithmConfig(**settings)).int().tolist()

    assert kept() == [1] * 8
    assert kept(token_mask=[0.5, 2.0]) == [1, 0, 0, 1, 1, 1, 1, 0]
    # Geometric means 1.2 ** .25 = 1.05 and 1.5; products 1.2 and 3.4. The last token does not count.
    assert kept(sequence_mask=[0.5, 1.4]) == [1] * 4 + [0] * 4
    assert kept(sequence_mask=[0.5, 1.6]) == [1] * 8
    assert kept(sequence_mask=[0.5, 3.0], sequence_mask_ratio="product") == [1] * 4 + [0] * 4
    assert kept(sequence_mask=[0.5, 1.1], sequence_mask_ratio="product") == [0] * 8
    assert kept(sequence_mask=[0.5, 3.5], sequence_mask_ratio="product", token_mask=[0.5, 9]) == [1, 1, 0] + [1] * 4 + [
        0
    ]


def test_kl_estimators_by_hand() -> None:
    new, ref = torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -0.5])
    torch.testing.assert_close(kl_estimate(new, ref, "k1"), torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(kl_estimate(new, ref, "k2"), torch.tensor([0.125, 0.125]))
    expected = torch.tensor([math.exp(-0.5) - 1 + 0.5, math.exp(0.5) - 1 - 0.5])
    torch.testing.assert_close(kl_estimate(new, ref, "k3"), expected)


def test_of_a_small_policy_k1_and_k3_have_the_value_of_the_kl_and_only_k2_its_gradient() -> None:
    """All tokens of a softmax policy, weighted by their probabilities, against the exact KL."""
    logits = torch.tensor([1.2, -0.7, 0.3, -1.5, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-0.4, 1.1, 0.2, 0.8, -1.3], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    p = logp.exp().detach()
    kl = (logp.exp() * (logp - ref)).sum()
    reverse = (ref.exp() * (ref - logp)).sum()
    exact, exact_reverse = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (kl, reverse))
    values = {name: (p * kl_estimate(logp, ref, name)).sum() for name in ("k1", "k2", "k3")}
    for name in ("k1", "k3"):
        torch.testing.assert_close(values[name], kl)
    assert abs(float((values["k2"] - kl).detach())) > 0.01
    gradients = {name: torch.autograd.grad(value, logits, retain_graph=True)[0] for name, value in values.items()}
    torch.testing.assert_close(gradients["k1"], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(gradients["k2"], exact)
    torch.testing.assert_close(gradients["k3"], exact_reverse)
    assert float(torch.cosine_similarity(gradients["k3"], exact, dim=0)) < 0.9


def test_importance_weights_are_cut_and_carry_no_gradient() -> None:
    learner = logs(0.5, 3.0).requires_grad_()
    weights = truncated_importance_weights(learner, torch.zeros(2), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0]))
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", [0, 1 / 4, 1 / 4]), ("sequence_mean", [0, 1 / 2, 1 / 6]), ("constant", [0, 1 / 20, 1 / 20])],
)
def test_aggregations_by_hand(aggregation: Aggregation, expected: list[float]) -> None:
    """Two sequences of 1 and 3 loss tokens, and one without any."""
    common = {"total_tokens": 4, "total_sequences": 2, "constant": 10.0}
    assert [sequence_weight(aggregation, n, **common) for n in (0, 1, 3)] == expected


def test_what_is_masked_does_not_leak_into_the_sum() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    total = weighted_sum(values, torch.tensor([0.5, 1.0, 2.0]), torch.tensor([True, False, True]))
    assert float(total) == 6.5
    total.backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.0, 2.0]))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_equal_the_plain_computation(chunk: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 5, generator=generator, requires_grad=True)
    weight = torch.randn(7, 5, generator=generator, requires_grad=True)
    ids = torch.randint(0, 7, (9,), generator=generator)
    mask = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0], dtype=torch.bool)

    def head(states: torch.Tensor) -> torch.Tensor:
        return states @ weight.T

    full = ((hidden @ weight.T) / temperature).log_softmax(-1)
    want = torch.zeros(9)
    want_entropy = torch.zeros(9)
    for t in range(9):
        if mask[t]:
            want[t] = full[t - 1, ids[t]]
            want_entropy[t] = -(full[t - 1].exp() * full[t - 1]).sum()
    upstream = torch.randn(9, generator=generator)
    target = torch.autograd.grad((want * upstream).sum() + want_entropy.sum(), [hidden, weight])

    logprobs, entropy = token_logprobs(hidden, head, ids, mask, temperature=temperature, chunk=chunk, entropy_grad=True)
    torch.testing.assert_close(logprobs, want)
    torch.testing.assert_close(entropy, want_entropy)
    got = torch.autograd.grad((logprobs * upstream).sum() + entropy.sum(), [hidden, weight])
    for a, b in zip(got, target, strict=True):
        torch.testing.assert_close(a, b)

    _, still = token_logprobs(hidden, head, ids, mask, temperature=temperature, chunk=chunk)
    assert not still.requires_grad


def test_logits_exist_for_one_chunk_at_a_time() -> None:
    seen: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return states @ torch.ones(4, 6)

    mask = torch.ones(20, dtype=torch.bool)
    mask[0] = False
    hidden = torch.randn(20, 4, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, head, torch.zeros(20, dtype=torch.long), mask, temperature=1.0, chunk=8)
    logprobs.sum().backward()
    assert max(seen) == 8
    assert sum(seen) == 2 * 19  # once forward, once again for the backward pass


def test_the_first_token_of_a_row_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="token 0"):
        token_logprobs(
            torch.zeros(2, 3),
            lambda s: s,
            torch.zeros(2, dtype=torch.long),
            torch.tensor([True, True]),
            temperature=1.0,
            chunk=4,
        )

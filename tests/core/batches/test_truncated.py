"""Completions that were cut, under each rule: their group, their reward, and the gradient over all possible groups."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from maxpo.batches.samples import treat_truncated, valid_samples
from maxpo.config import AlgorithmConfig
from maxpo.loop.selection import assess
from maxpo.types import Mix, ScoredGroup
from tests.fakes import completion, scored

N, K = 4, 2
RIGHT, WRONG, CUT = range(3)
REWARDS = (1.0, 0.0, 0.7)
"""A verifier finds something in a text that was cut, too."""


def group(outcomes: tuple[int, ...]) -> ScoredGroup:
    cut = [completion("abc"[o], finish_reason="length" if o == CUT else "stop") for o in outcomes]
    return scored([REWARDS[o] for o in outcomes], completions=tuple(cut))


def test_each_rule_by_hand() -> None:
    given = scored(
        [1.0, 0.7, 0.5, 0.3],
        [True, True, True, False],
        successes=[True, True, True, False],
        completions=tuple(completion(finish_reason=reason) for reason in ("stop", "length", "stop", "length")),
    )
    assert treat_truncated([given], "train") == [given]
    (masked,) = treat_truncated([given], "mask")
    assert masked.valid == (True, False, True, False)
    assert [s.index for s in valid_samples([masked])] == [0, 2]
    (zeroed,) = treat_truncated([given], "zero")
    assert (zeroed.valid, zeroed.rewards) == (given.valid, (1.0, 0.0, 0.5, 0.3))
    assert zeroed.successes == masked.successes == (True, False, True, False)
    # One that could not be scored was not cut by the rule.
    assert masked.outcomes == zeroed.outcomes == ("ok", "truncated", "ok", "timeout")


def best_of_k(logits: torch.Tensor, rule: str) -> torch.Tensor:
    """The expected best reward of K completions, of those that end in time where the rest is masked."""
    p = logits[: 2 if rule == "mask" else 3].softmax(0)
    rewards = (*REWARDS[:CUT], 0.0 if rule == "zero" else REWARDS[CUT])
    draws = itertools.product(range(len(p)), repeat=K)
    return torch.stack([p[list(d)].prod() * max(rewards[o] for o in d) for d in draws]).sum()


@pytest.mark.parametrize("rule", ["train", "mask", "zero"])
def test_over_all_groups_the_gradient_is_that_of_the_objective(rule: Literal["train", "mask", "zero"]) -> None:
    logits = torch.tensor([0.2, 0.9, 0.4], dtype=torch.float64, requires_grad=True)
    outcomes = list(itertools.product(range(3), repeat=N))
    algorithm = AlgorithmConfig(k=K, group_size=N)
    assessed = assess(treat_truncated(list(map(group, outcomes)), rule), algorithm, [K] * len(outcomes), Mix())
    logp = logits.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    enough = 0.0
    for drawn, one in zip(outcomes, assessed, strict=True):
        assert abs(sum(one.advantages)) < 1e-12
        if one.enough:
            chance = float(logp.detach()[list(drawn)].sum().exp())
            terms = [a * logp[o] for a, o in zip(one.advantages, drawn, strict=True)]
            total = total + chance * torch.stack(terms).sum() / sum(one.scored.valid)
            enough += chance
    assert (enough < 1) == (rule == "mask")  # groups with fewer than K + 1 completions left are dropped
    (got,) = torch.autograd.grad(total / enough, logits)
    (want,) = torch.autograd.grad(best_of_k(logits, rule), logits)
    torch.testing.assert_close(got, want)
    if rule == "mask":
        assert float(got[CUT].abs()) < 1e-12  # being cut is neither punished nor rewarded

"""Unbiased pass@k and its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maxpo.evaluate import bootstrap, report
from maxpo.metrics import max_at_k
from tests.fakes import completion, scored


def test_pass_at_k_is_without_replacement() -> None:
    rewards = torch.tensor([[1.0] * 2 + [0.0] * 6])
    value, enough = max_at_k(rewards, 4)
    assert float(value) == pytest.approx(1 - math.comb(6, 4) / math.comb(8, 4))
    assert float(value) == pytest.approx(0.786, abs=5e-4)
    assert bool(enough)
    for k in range(1, 9):
        assert float(max_at_k(rewards, k)[0]) == pytest.approx(1 - math.comb(6, k) / math.comb(8, k))
    with pytest.raises(ValueError, match=r"max@9 of groups of 8"):
        max_at_k(rewards, 9)


def test_masked_samples_are_absent() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 7.0], [1.0, 7.0, 7.0, 7.0]])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    value, enough = max_at_k(rewards, 2, valid)
    assert enough.tolist() == [True, False]
    assert float(value[0]) == pytest.approx(2 / 3)


def test_a_report_by_hand() -> None:
    same = tuple(completion("x") for _ in range(4))
    groups = [scored([1, 0, 0, 0]), scored([0, 0, 0, 0], completions=same), scored([1, 1, 1, 1])]
    result = report(groups, [1, 2])
    assert result.objective == "pass"
    assert result.at_k[1].value == pytest.approx((0.25 + 0 + 1) / 3)
    assert result.at_k[2].value == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.mean == pytest.approx(5 / 12)
    assert result.solved == pytest.approx(2 / 3)
    assert result.unique == pytest.approx((1 + 0.25 + 1) / 3)
    assert result.metrics()["eval/pass@2"] == result.at_k[2].value


def test_graded_rewards_are_max_at_k_and_thin_prompts_are_left_out_of_every_k() -> None:
    groups = [scored([0.2, 0.8]), scored([0.5, 0.1], valid=[True, False])]
    result = report(groups, [1, 2])
    assert (result.objective, result.prompts, result.dropped_prompts) == ("max", 1, 1)
    assert result.at_k[2].value == pytest.approx(0.8)
    assert result.at_k[1].value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no evaluation prompt has 2 valid samples"):
        report(groups[1:], [1, 2])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        estimate = bootstrap(rng.binomial(1, 0.3, size=100).astype(float), seed=i)
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.3 <= estimate.high
    assert 180 <= covered <= 199

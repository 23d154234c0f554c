"""Unbiased pass@k and its intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from maxpo.estimators.pass_at_k import max_at_k
from maxpo.evaluation.figures import Estimate, EvalReport
from maxpo.evaluation.measure import prompt_result
from maxpo.evaluation.report import bootstrap, majority, report
from maxpo.tracking.metrics import check_names
from maxpo.types import ScoredGroup
from tests.fakes import completion, prompt, scored


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


def results(*groups: ScoredGroup, answers: Sequence[str] = (), greedy: Sequence[float | None] = ()) -> list[Any]:
    """Answers as one word for each group, a letter for each completion, a dot for none."""
    words = [[None if a == "." else a for a in word] for word in answers] or [None] * len(groups)
    return [prompt_result(*each) for each in zip(groups, words, greedy or [None] * len(groups), strict=True)]


def test_a_report_by_hand() -> None:
    same = tuple(completion("x") for _ in range(4))
    groups = [scored([1, 0, 0, 0]), scored([0, 0, 0, 0], completions=same), scored([1, 1, 1, 1])]
    result = report(results(*groups, answers=["abbb", "....", "cccc"], greedy=[1, 0, 1]), [1, 2], greedy=True)
    assert result.sources == {}
    values = {name: e.value for name, e in result.overall.estimates.items()}
    assert list(values) == ["pass@1", "pass@2", "avg@4", "maj@4", "greedy"]
    assert values["pass@1"] == values["avg@4"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert values["pass@2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert values["maj@4"] == pytest.approx(1 / 3)
    assert values["greedy"] == pytest.approx(2 / 3)
    assert result.overall.solved == pytest.approx(2 / 3)
    assert result.overall.unique == pytest.approx((1 + 0.25 + 1) / 3)
    assert result.overall.no_answer == pytest.approx(4 / 12)
    metrics = result.metrics()
    check_names(list(metrics))
    assert metrics["eval/pass@2"] == values["pass@2"]
    assert metrics["eval/maj@4/low"] <= metrics["eval/maj@4"] <= metrics["eval/maj@4/high"]
    assert EvalReport.from_dict(json.loads(json.dumps(asdict(result)))) == result


@pytest.mark.parametrize(
    ("successes", "votes", "expected"),
    [
        ([1, 0, 1, 0], [0, 1, 0, 2], 1.0),
        ([1, 0, 0, 0], [0, 1, 1, 2], 0.0),
        ([1, 0, 1, 0], [0, 1, 0, 1], 0.5),  # two answers are tied
        ([1, 0, 0, 0], [0, 1, 2, 3], 0.25),  # four are
        ([1, 0, 0, 0], [0, None, None, None], 1.0),  # only one votes
        ([1, 1, None, 0, 0], [None, 0, 1, 1, 1], 0.0),
        ([1, None, None, 0], [0, 1, 1, None], 1.0),  # what was not judged has no vote
        ([1, 1], [None, None], 0.0),  # a prompt without a vote
        ([1, 0, 0], [0, 0, 1], 0.5),  # the same answer, with and without the format
        ([1, 0, 0, 0, 0], [0, 0, 1, 1, 2], 0.25),
    ],
)
def test_majorities_by_hand(successes: list[bool | None], votes: list[int | None], expected: float) -> None:
    assert majority(successes, votes) == pytest.approx(expected)


def test_graded_rewards_have_max_at_k_too_and_thin_prompts_are_left_out_of_every_figure() -> None:
    groups = [scored([0.2, 1.2]), scored([0.5, 0.1], valid=[True, False])]
    result = report(results(*groups), [1, 2]).overall
    assert (result.prompts, result.dropped_prompts, result.no_answer) == (1, 1, None)
    values = {name: e.value for name, e in result.estimates.items()}
    assert values == pytest.approx({"pass@1": 0.5, "pass@2": 1.0, "max@1": 0.7, "max@2": 1.2, "avg@2": 0.7})
    with pytest.raises(ValueError, match="no evaluation prompt has 2 valid samples"):
        report(results(groups[1]), [1, 2])


def test_a_prompt_whose_greedy_completion_was_not_judged_is_left_out() -> None:
    result = report(results(scored([1, 1]), scored([0, 0]), greedy=[None, 0.0]), [1], greedy=True).overall
    assert (result.prompts, result.dropped_prompts, result.estimates["pass@1"].value) == (1, 1, 0.0)
    with pytest.raises(ValueError, match="and a valid greedy completion"):
        report(results(scored([1, 1])), [1], greedy=True)


def test_each_source_by_itself() -> None:
    def of(source: str, rewards: list[float], valid: list[bool] | None = None) -> ScoredGroup:
        return scored(rewards, valid, prompt=replace(prompt(), source=source))

    groups = [of("a b/c", [1, 0]), of("d", [0, 0]), of("d", [1, 1]), of("e", [1, 1], [True, False])]
    result = report(results(*groups, answers=["xy", "xx", "xx", "xx"]), [2])
    assert result.overall.estimates["pass@2"].value == pytest.approx(2 / 3)
    each = {source: (f.prompts, f.dropped_prompts) for source, f in result.sources.items()}
    assert each == {"a b/c": (1, 0), "d": (2, 0), "e": (0, 1)}
    metrics = result.metrics()
    check_names(list(metrics))
    assert metrics["eval/d/pass@2"] == 0.5
    assert metrics["eval/a b/c/maj@2"] == 0.5
    assert [name for name in metrics if name.startswith("eval/e/")] == ["eval/e/dropped_prompts"]
    # One whose verifier does not say what an answer is has no maj@n, and then there is none of all prompts.
    mixed = [prompt_result(groups[0], ["x", "y"]), prompt_result(groups[1])]
    result = report(mixed, [2])
    assert "maj@2" not in result.overall.estimates
    assert "maj@2" in result.sources["a b/c"].estimates
    assert "maj@2" not in result.sources["d"].estimates


def test_the_report_of_an_older_checkpoint_is_read() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    old = {"objective": "pass", "at_k": {"4": estimate}, "mean": 0.1, "solved": 0.7, "unique": 0.9}
    result = EvalReport.from_dict(old | {"prompts": 5, "dropped_prompts": 1, "tokens": 9})
    assert result.overall.estimates == {"pass@4": Estimate(**estimate)}
    assert (result.overall.prompts, result.overall.solved, result.sources) == (5, 0.7, {})


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        estimate = bootstrap(rng.binomial(1, 0.3, size=100).astype(float), seed=i)
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.3 <= estimate.high
    assert 180 <= covered <= 199

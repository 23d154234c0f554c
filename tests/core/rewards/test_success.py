"""Success: what the verifiers and environments say, never a sum of rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxpo.config import AlgorithmConfig, RewardConfig
from maxpo.evaluation.measure import prompt_result
from maxpo.evaluation.report import report
from maxpo.loop.selection import assess
from maxpo.loop.step_metrics import valid_successes
from maxpo.rewards.base import Score, add_up, agreed, succeeds
from maxpo.rewards.registry import REWARDS, SHAPING, find_scorer, find_verifier, unread
from maxpo.types import Episode, Group, Mix, ScoredGroup
from rollout.scoring.verifier_pool import Result, scored_group
from tests.fakes import completion, prompt

THINKS = "<think>six times seven</think>"


def judged(config: RewardConfig, texts: list[str], reference: object = "42") -> ScoredGroup:
    """The group of these answers, as the pool makes it."""
    asked = prompt(reference=reference)
    score = find_scorer(config)
    group = Group(prompt=asked, completions=tuple(map(completion, texts)))
    return scored_group(group, [Result("ok", score(asked, text)) for text in texts])


def combined(parts: dict[str, float], **args: dict[str, object]) -> RewardConfig:
    return RewardConfig(verifier="combined", parts=parts, args=args)


def test_a_perfect_answer_is_a_success_although_its_weights_add_up_to_less_than_one():
    assert 0.7 + 0.2 + 0.1 < 1
    config = combined({"numeric": 0.7, "regex": 0.2, "format": 0.1}, regex={"pattern": "42", "mode": "search"})
    scored = judged(config, [THINKS + "42", THINKS + "41"])
    assert scored.rewards[0] == 1.0
    assert scored.successes == (True, False)
    assert report([prompt_result(scored)], [1]).overall.estimates["pass@1"].value == 0.5
    assert valid_successes([scored]) == {"p": [True, False]}  # the adaptive K uses these


def test_a_wrong_answer_in_the_right_format_is_no_success():
    scored = judged(combined({"numeric": 1, "format": 1}), [THINKS + "41", "42"])
    assert scored.rewards == (1.0, 1.0)
    assert scored.successes == (False, True)
    figures = report([prompt_result(scored, ["41", "42"])], [1]).overall
    assert {name: e.value for name, e in figures.estimates.items()} == {
        "pass@1": 0.5,
        "max@1": 1.0,  # max@k is about rewards, and these are not 1 for a success and 0 otherwise
        "avg@2": 1.0,
        "maj@2": 0.5,
    }


def test_a_right_answer_with_a_penalty_is_a_success():
    scored = judged(combined({"exact": 1, "length": 0.5}, length={"start": 1, "cap": 3}), ["42", "no"])
    assert scored.rewards == (0.75, -0.25)
    assert scored.successes == (True, False)


def test_rewards_that_are_equal_up_to_rounding_have_no_signal():
    assert 0.1 + 0.2 != 0.3
    group = Group(prompt=prompt(), completions=(completion("a"), completion("b"), completion("c")))
    scored = scored_group(group, [Result("ok", Score(reward=r)) for r in (0.3, 0.1 + 0.2, 0.3)])
    assert set(scored.rewards) == {0.3}
    for advantage in ("maxpo", "grpo", "rloo"):
        (assessed,) = assess([scored], AlgorithmConfig(advantage=advantage, k=2, group_size=3), [2], Mix())
        assert assessed.advantages == (0.0, 0.0, 0.0), advantage
        assert not assessed.has_signal


@pytest.mark.parametrize(
    ("terms", "total"),
    [
        ([0.1, 0.2], 0.3),
        ([0.1, 0.2, -0.3], 0.0),  # not 5.6e-17
        ([0.7, 0.2, 0.1], 1.0),
        ([1e-20, 2e-20], 3e-20),  # small rewards stay different
        ([1e12, 1.0], 1e12),
        ([], 0.0),
        ([-0.0], 0.0),
        ([1e308, 1e308], float("inf")),
        ([5e-324], 5e-324),
    ],
)
def test_sums_are_rounded_to_their_largest_summand(terms: list[float], total: float):
    assert add_up(terms) == total
    assert str(add_up(terms)) == str(total)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_changes_a_reward_by_less_than_the_rule_for_success_allows(reward: float):
    once = add_up([reward])
    assert once == pytest.approx(reward, rel=1e-11, abs=0)
    assert add_up([once]) == once


@given(
    parts=st.lists(
        st.tuples(st.sampled_from([True, False, None]), st.floats(-5, 5), st.floats(0.001, 1000)), min_size=1
    ).filter(lambda parts: any(opinion is not None for opinion, _, _ in parts)),
    penalties=st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(-1000, 0))),
)
def test_success_is_what_the_parts_say_whatever_rewards_and_weights(parts, penalties):
    scores, weights = {}, {}
    for i, (opinion, reward, weight) in enumerate(parts):
        scores[f"part{i}"], weights[f"part{i}"] = Score(reward=reward, success=opinion), weight
    for i, (opinion, weight) in enumerate(penalties):
        scores[f"penalty{i}"], weights[f"penalty{i}"] = Score(reward=1.0, success=opinion), weight
    with pytest.MonkeyPatch.context() as patch:
        for name, score in scores.items():
            patch.setitem(REWARDS, name, lambda text, reference, score=score: score)
        group = judged(combined(weights), ["any"])
    assert group.successes == (False not in [opinion for opinion, _, _ in parts],)


def test_without_any_opinion_the_reward_decides():
    assert judged(RewardConfig(verifier="format"), [THINKS + "1", "1"]).successes == (True, False)
    assert judged(combined({"format": 0.5, "length": 1.0}), [THINKS + "1"]).successes == (False,)
    assert agreed([]) is None
    assert agreed([None, True, False]) is False


@pytest.mark.parametrize(
    ("reward", "success"), [(1, True), (0.7 + 0.2 + 0.1, True), (2.5, True), (0.999999, False), (-1.0, False)]
)
def test_a_plain_reward_succeeds_from_one_on_up_to_rounding(reward: float, success: bool):
    assert succeeds(reward) is success


RIGHT = {
    "choice": ("B", "B"),
    "countdown": ("3*2=6,7+6=13", {"numbers": [3, 7, 2], "target": 13}),
    "exact": ("yes", "yes"),
    "json_schema": ('{"age": 3}', {"required": ["age"]}),
    "math": (r"\boxed{1/2}", "0.5"),
    "maze": ("RD", {"grid": ["S.", "#G"], "moves": 2}),
    "numeric": ("it is 42", 42),
    "regex": ("cat", "c.t"),
}
ELSEWHERE = {"code", "code_unsafe_no_sandbox", "reasoning_gym"}
"""Verifiers whose tests need a sandbox or a package."""


@pytest.mark.parametrize("name", sorted(REWARDS.keys() - ELSEWHERE))
def test_every_verifier_says_what_a_success_is_or_has_no_opinion(name: str):
    if name in SHAPING:
        assert find_verifier(name)("", THINKS + "42", None).success is None
        return
    text, reference = RIGHT[name]
    judge = find_verifier(name)
    assert judge("", text, reference).success is True
    assert judge("", "neither right nor readable", reference).success is False
    assert judge("", "", reference).success is False


def test_an_answer_that_is_not_read_is_masked_or_has_no_opinion():
    config = RewardConfig(verifier="a.b:c", by_source={name: name for name in REWARDS})
    scores = {name: score for name in REWARDS if (score := unread(config, name)) is not None}
    assert set(scores) == {"environment", "length"}
    assert {score.success for score in scores.values()} == {None}
    assert unread(config, "") is None
    assert unread(combined({"exact": 1.0, "format": 1.0}), "") is None


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (0.7 + 0.2 + 0.1, Score(reward=0.7 + 0.2 + 0.1, success=True)),
        (True, Score(reward=1.0, success=True)),
        (0.5, Score(reward=0.5, success=False)),
        ({"a": 0.7, "b": 0.2, "c": 0.1}, Score(reward=1.0, success=True, parts={"a": 0.7, "b": 0.2, "c": 0.1})),
        (Score(reward=3, success=False), Score(reward=3.0, success=False)),
        (Score(reward=0.1, success=True, parts={"x": 1}), Score(reward=0.1, success=True, parts={"x": 1.0})),
        (Score(reward=-0.5), Score(reward=-0.5)),
    ],
)
def test_an_own_function_says_it_by_its_number_or_by_a_score(returned: object, score: Score, monkeypatch):
    monkeypatch.setattr("tests.verifiers.starts", lambda prompt, text, reference: returned)
    assert find_verifier("tests.verifiers:starts")("p", "text", None) == score


@pytest.mark.parametrize(
    "returned",
    [Score(reward=float("nan")), Score(reward=1.0, success="yes"), Score(reward=1.0, parts={"x": None})],  # type: ignore[arg-type]
)
def test_a_wrong_score_is_told(returned: Score, monkeypatch):
    monkeypatch.setattr("tests.verifiers.starts", lambda prompt, text, reference: returned)
    with pytest.raises(TypeError, match="a Score must have finite numbers, and success True, False or None"):
        find_verifier("tests.verifiers:starts")("p", "text", None)


@pytest.mark.parametrize(
    ("verifier", "environment", "rewards", "success"),
    [
        (None, None, (0.0, 1.0), True),  # the plain rule, on the total
        (None, None, (0.5, 0.4), False),
        (None, True, (0.0, 0.2), True),
        (None, False, (0.0, 5.0), False),
        (True, None, (1.0, -0.5), True),  # a cost for each step
        (False, None, (0.0, 3.0), False),
        (True, False, (1.0, 1.0), False),
        (True, True, (1.0, -9.0), True),
    ],
)
def test_an_episode_succeeds_if_verifier_and_environment_agree(verifier, environment, rewards, success):
    episode = Episode(turns=1, answer="x", reward=rewards[1], success=environment)
    group = Group(prompt=prompt(), completions=(replace(completion(), episode=episode),))
    scored = scored_group(group, [Result("ok", Score(reward=rewards[0], success=verifier))])
    assert scored.successes == (success,)


def test_a_completion_without_a_score_is_no_success():
    group = Group(prompt=prompt(), completions=(completion(), completion()))
    scored = scored_group(group, [Result("timeout"), Result("ok", Score(reward=1.0, success=True))])
    assert (scored.valid, scored.successes) == ((False, True), (False, True))
    with pytest.raises(ValueError, match="'successes': 1"):
        replace(scored, successes=(True,))

"""Verifiers found by name, with their settings, and several added up."""

from __future__ import annotations

import importlib.util

import pytest

from maxpo.config import RewardConfig
from maxpo.rewards.base import Score
from maxpo.rewards.registry import NEEDS, find_scorer, find_verifier, names_in_use, unread
from maxpo.types import Prompt

TEXT = "<think>six times seven</think>The answer is 42.1."


def test_the_reward_is_the_weighted_sum_and_the_parts_are_unweighted():
    args = {"numeric": {"tolerance": 0.01}, "length": {"start": 41, "cap": 57}}
    judge = find_verifier("combined", args, {"numeric": 2, "format": 0.25, "length": 0.5, "exact": 0})
    assert len(TEXT) == 49  # half of the way from 41 to 57
    assert judge("6*7=", TEXT, 42) == Score(
        reward=2 * 1.0 + 0.25 * 1.0 - 0.5 * 0.5,
        success=True,
        parts={"numeric": 1.0, "numeric/format": 1.0, "format": 1.0, "length": -0.5, "exact": 0.0},
    )
    assert judge("6*7=", "43", 42).reward == 0.0
    assert judge("6*7=", "42", 42) == Score(
        reward=2.0,
        success=True,
        parts={"numeric": 1.0, "numeric/format": 1.0, "format": 0.0, "length": 0.0, "exact": 1.0},
    )


def test_weights_may_be_negative():
    judge = find_verifier("combined", {"regex": {"pattern": "sorry", "mode": "search"}}, {"exact": 1, "regex": -0.5})
    assert judge("", "sorry", "sorry").reward == 0.5
    assert judge("", "I am sorry", "yes").reward == -0.5


def test_an_own_function_may_be_a_part_and_have_settings():
    name = "tests.verifiers:starts"
    judge = find_verifier("combined", {name: {"letter": "4"}}, {"exact": 1.0, name: 0.5})
    assert judge("p", "42", "42") == Score(
        reward=1.5, success=True, parts={"exact": 1.0, "tests.verifiers.starts": 1.0}
    )
    assert find_verifier(name, {name: {"letter": "x"}})("p", "42", "42") == Score(reward=0.0, success=False)
    assert find_verifier(name)("p", "yes", "42") == Score(reward=1.0, success=True)


def test_one_that_raises_leaves_no_score():
    judge = find_verifier("combined", {}, {"format": 1.0, "numeric": 1.0})
    with pytest.raises(ValueError, match="must be a finite number"):
        judge("", "42", "no number")


@pytest.mark.parametrize(
    ("name", "args", "parts", "message"),
    [
        ("maths", {}, {}, "no verifier is called 'maths': use one of .*'math'"),
        ("combined", {}, {}, "combined needs weights"),
        ("combined", {}, {"combined": 1.0}, "combined needs weights of other"),
        ("combined", {}, {"maths": 1.0}, "no verifier is called 'maths'"),
        ("numeric", {"numeric": {"tol": 1}}, {}, "numeric has no argument tol: it has tolerance"),
        ("combined", {"numeric": {"tolerance": "x"}}, {"numeric": 1.0}, "tolerance must be a number"),
        ("tests.verifiers:none", {}, {}, "cannot be imported"),
        ("tests.verifiers:", {}, {}, "no verifier is called 'tests.verifiers:'"),
        (":f", {}, {}, "no verifier is called ':f'"),
        ("math:pi", {}, {}, "'math:pi' is not a function"),
        ("tests.verifiers:starts", {"tests.verifiers:starts": {"leter": "x"}}, {}, "no argument leter.* mean letter"),
        ("tests.verifiers:secret", {"tests.verifiers:secret": {"x": 1}}, {}, "no argument x: it has none"),
    ],
)
def test_mistakes(name, args, parts, message):
    with pytest.raises(ValueError, match=message):
        find_verifier(name, args, parts)


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_package_that_is_missing_is_named_with_how_to_get_it(name, monkeypatch):
    module, _ = NEEDS[name]
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda m, *rest: None if m == module else found(m, *rest))
    with pytest.raises(ValueError, match=f"needs the package {module}, which is not installed: pip install"):
        find_verifier(name)
    find_verifier("exact")


def prompt(source: str) -> Prompt:
    return Prompt(prompt_id="p", text="p", token_ids=(1,), reference="42", source=source)


def test_a_source_may_have_a_verifier_of_its_own():
    judge = find_scorer(RewardConfig(verifier="exact", by_source={"b": "numeric"}))
    assert [judge(prompt(source), "it is 42").reward for source in "abc"] == [0.0, 1.0, 0.0]


def test_what_is_not_read_has_no_score_but_the_whole_penalty_of_its_length():
    parts = {"exact": 1.0, "length": 0.5, "a.b:c": 3.0}
    config = RewardConfig(verifier="combined", parts=parts, by_source={"x": "exact", "y": "length", "z": "a.b:c"})
    assert unread(config, "y") == Score(reward=-1.0)
    assert [unread(config, source) for source in ("", "x", "z")] == [None, None, None]
    assert unread(RewardConfig(verifier="environment"), "") == Score(reward=0.0)
    assert names_in_use(config) == {"exact", "length", "a.b:c"}
    assert names_in_use(RewardConfig(verifier="exact", parts=parts)) == {"exact"}

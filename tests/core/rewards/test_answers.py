"""What the answer of a completion is, for the majority vote."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from maxpo.config import RewardConfig
from maxpo.rewards.answers import ANSWERS, answers_of, find_answer
from maxpo.rewards.registry import REWARDS
from tests.core.rewards.test_rewards import HOSTILE
from tests.fakes import prompt


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("exact", ["yes", " yes\n"]),
        ("numeric", ["so 12", "12.0", "= 1.2e1", "that is 12."]),
        ("numeric", ["-0", "0", "0.0"]),
        ("numeric", ["1,234", "It costs $1234.00 in all."]),
        ("choice", ["The answer is (b).", r"\boxed{B}", "B"]),
        ("math", [r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{1/2}", r"\boxed{\frac{2}{4}}", r"$\boxed{0.50}$"]),
        ("math", [r"\boxed{5}", r"\boxed{5.0}", r"\boxed{5\text{ cm}}"]),
        ("math", [r"\boxed{1,234}", r"\boxed{1234}", r"\boxed{1{,}234}"]),
        ("math", [r"\boxed{x+1}", r"\boxed{1+x}", r"\boxed{y=x+1}"]),
        ("math", [r"\boxed{2+3}", r"\boxed{5}", r"\boxed 5", r"\boxed{x=5}"]),
        ("math", [r"\boxed{\sqrt{2}/2}", r"\boxed{\frac{1}{\sqrt2}}"]),
        ("math", [r"\boxed{\{1,2\}}", r"\boxed{\{2, 1\}}", r"\boxed{2,1}"]),
        ("math", [r"\boxed{0.333333333}", r"\boxed{1/3}"]),
        ("reasoning_gym", ["<answer> 7</answer>", "let me see <answer>7</answer> or so", "7"]),
    ],
)
def test_equal_answers_are_equal_texts(name: str, texts: list[str]) -> None:
    found = {ANSWERS[name](text) for text in texts}
    assert len(found) == 1
    assert None not in found


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("exact", ["yes", "Yes", "yes."]),
        ("numeric", ["12", "-12", "12.0001"]),
        ("choice", ["A", "B"]),
        ("math", [r"\boxed{2+4}", r"\boxed{5}", r"\boxed{-5}", r"\boxed{5x}", r"\boxed{[0,5)}", r"\boxed{[0,5]}"]),
        ("math", [r"\boxed{5\text{ million}}", r"\boxed{5\text{ zorgs}}", r"\boxed{5}", r"\boxed{\text{five}}"]),
        ("math", [r"\boxed{9^{9^{9}}}", r"\boxed{9^{9^{8}}}"]),  # written, not worked out
        ("reasoning_gym", ["<answer>7</answer>", "<answer>8</answer>"]),
    ],
)
def test_other_answers_are_other_texts(name: str, texts: list[str]) -> None:
    assert len({ANSWERS[name](text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("exact", " \n"),
        ("numeric", "no number"),
        ("numeric", "1" * 65),
        ("choice", "The answer is A or B."),
        ("math", "The answer is 5."),
        ("math", r"\boxed{}"),
        ("math", r"\boxed{" + "(" * 20 + "1" + ")" * 20 + "}"),
        ("reasoning_gym", "<answer></answer>"),
    ],
)
def test_no_answer(name: str, text: str) -> None:
    assert ANSWERS[name](text) is None


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_hostile_texts_raise_nothing(name: str) -> None:
    for text in HOSTILE:
        ANSWERS[name](text)


def test_every_right_answer_that_the_verifiers_examples_know_has_a_vote() -> None:
    assert set(ANSWERS) <= set(REWARDS)
    assert importlib.util.find_spec("math_verify") is not None
    for name, text in (("exact", "yes"), ("numeric", "3"), ("choice", "C"), ("math", r"\boxed{3}")):
        reference = {"exact": "yes", "choice": "C"}.get(name, 3)
        assert REWARDS[name](text, reference).reward == 1.0
        assert ANSWERS[name](text) is not None


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"verifier": "math"}, "5"),
        ({"verifier": "math", "args": {"math": {"longest": 3}}}, None),
        ({"verifier": "exact"}, r"the answer is \boxed{5.00}"),
        ({"verifier": "combined", "parts": {"math": 1.0, "format": 0.2, "length": 0.1}}, "5"),
        ({"verifier": "exact", "by_source": {"fake": "numeric"}}, "5"),
    ],
)
def test_the_verifier_of_the_source_with_its_settings(settings: dict[str, Any], found: str | None) -> None:
    assert answers_of(RewardConfig(**settings))(prompt(), r"the answer is \boxed{5.00}") == found


@pytest.mark.parametrize(
    "settings",
    [
        *({"verifier": name} for name in sorted(set(REWARDS) - set(ANSWERS))),
        {"verifier": "tests.verifiers:starts"},
        {"verifier": "combined", "parts": {"format": 1.0, "length": 1.0}},
        {"verifier": "combined", "parts": {"math": 1.0, "numeric": 1.0}},
        {"verifier": "exact", "by_source": {"fake": "length"}},
    ],
    ids=str,
)
def test_where_there_is_no_answer_to_be_found(settings: dict[str, Any]) -> None:
    reward = RewardConfig(**settings)
    assert find_answer(reward, "fake") is None
    assert answers_of(reward)(prompt(), "5") is None

"""The verifiers of answers, choices, patterns, JSON, format and length, case by case by hand."""

from __future__ import annotations

import pytest

from maxpo.rewards.base import Score
from maxpo.rewards.verifiers.boxed import last_boxed
from maxpo.rewards.verifiers.choice import choice
from maxpo.rewards.verifiers.json_schema import json_schema
from maxpo.rewards.verifiers.length import length
from maxpo.rewards.verifiers.regex import regex
from maxpo.rewards.verifiers.thinking_format import thinking_format

RIGHT = Score(reward=1.0, success=True, parts={"format": 1.0})
WRONG = Score(reward=0.0, success=False, parts={"format": 1.0})
MALFORMED = Score(reward=0.0, success=False, parts={"format": 0.0})


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{4} and \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),  # an escaped brace needs no partner
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{123456789012345}", "123456789012345"),
        (r"\boxed{1234567890123456}", None),  # 16 characters
        (r"\boxed{5} then \boxed{6", None),  # the last one counts, and it does not end
        (r"\boxed{5\}", None),
        (r"\boxed 5", "5"),
        (r"\boxed -5.", "-5"),
        (r"$\boxed\frac12$", r"\frac12"),
        (r"\fbox{5}", "5"),
        (r"\boxed{5}, which is in \boxed form", "5"),
        ("5", None),
        ("", None),
        (r"\boxed{" + "{" * 10_000 + "}" * 10_001, None),
    ],
)
def test_the_last_box(text, content):
    assert last_boxed(text, 15) == content


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "(B)", "(b)", " B.\n", "**B**", "$B$", r"\boxed{B}", r"\boxed{(b)}", r"\boxed{\text{B}}", "B)",
        "I think A, no: the answer is B", "Answer: (B)", "The answer is B.\nBecause A is not.", "**Answer:** B",
        "answer is A\nanswer is B", "ANSWER: B", "The answer is: B", r"The answer is A, so \boxed{B}",
        "B is right", "**Answer**: B", r"The answer is \(B\).", "ANSWER IS B", "B) 42 apples", "Option (B)",
        "The correct option is B", "Answer: B. Paris", "The answer is (B) Paris, because A is wrong", "I choose B.",
        r"\boxed{\textbf{(B)}}", r"\boxed B", "The answer is\nB", "Let me think.\nB) Paris", "The answer is B, not A.",
    ],
)  # fmt: skip
def test_choice_right(text):
    assert choice(text, "B") == RIGHT


@pytest.mark.parametrize("text", ["A", "(a)", "J", r"\boxed{C}", "answer is B\nanswer is A", r"Answer: B, \boxed{A}"])
def test_choice_wrong(text):
    assert choice(text, "(b)") == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "", "K", "AB", "A or B", "A, B", "It must be B", "The answer is B or C", "answer is A B",
        "the answer is because", r"\boxed{A, B}", r"\boxed{", r"B \boxed{}", "(B", "\u0412", "\uff22", "B\u200b",
        "B" * 100, "answer:" + " " * 100 + "B",
    ],
)  # fmt: skip
def test_choice_that_is_none(text):
    assert choice(text, "B") == MALFORMED


def test_choice_in_a_box_only():
    assert choice("B", "B", boxed=True) == MALFORMED
    assert choice(r"\boxed{B}", "B", boxed=True) == RIGHT


@pytest.mark.parametrize("reference", ["", "K", "AB", 2, ["B", "K"]])
def test_choice_raises_for_a_reference_that_is_no_letter(reference):
    with pytest.raises(ValueError, match="letter from A to J"):
        choice("A", reference)


def test_regex():
    assert regex("cat", "c.t") == Score(reward=1.0, success=True)
    assert regex("a cat", "c.t") == Score(reward=0.0, success=False)
    assert regex("cat\n", "c.t") == Score(reward=0.0, success=False)
    assert regex("a cat", "c.t", mode="search") == Score(reward=1.0, success=True)
    assert regex("dog", "c.t", mode="search") == Score(reward=0.0, success=False)
    assert regex("cat", None, pattern="[a-z]+") == Score(reward=1.0, success=True)
    assert regex("cat", "c.t", pattern="dog") == Score(reward=0.0, success=False)  # the setting is the pattern
    for reference in ("(", 3, None):
        with pytest.raises(ValueError, match="must be a pattern"):
            regex("cat", reference)


PERSON = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


@pytest.mark.parametrize(
    "text",
    [
        '{"age": 3}',
        ' {"age": 3, "name": "x"}\n',
        'Here it is:\n```json\n{"age": 3}\n```\nDone.',
        '```json\n{"age": -3}\n```\n```json\n{"age": 3}\n```',
        '```json\r\n{"age": 3}\r\n```\r\n',
        '```json\n{"age": 3}\n```\n```\nnot json\n```',
    ],
)
def test_json_that_fits(text):
    assert json_schema(text, PERSON) == RIGHT


@pytest.mark.parametrize(
    "text", ["{}", "3", "null", '{"age": -1}', '{"age": "3"}', '```json\n{"age": 3}\n```\n```json\n{}\n```']
)
def test_json_that_does_not_fit(text):
    assert json_schema(text, PERSON) == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age: 3",
        "{'age': 3}",
        '{"age": 3} and more',
        '{"age": NaN}',
        '{"age": Infinity}',
        '```\n{"age": 3}\n```',  # not a json block
        '```json\n{"age": 3}',  # does not end
        '{"age": ' + "9" * 5000 + "}",
        "[" * 20_000 + "]" * 20_000,
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        "\ud800",
    ],
)
def test_what_is_not_json(text):
    assert json_schema(text, PERSON) == MALFORMED


def test_json_schemas_may_be_text_and_fetch_nothing(monkeypatch):
    assert json_schema("3", '{"type": "integer"}') == RIGHT
    assert json_schema("3", True) == RIGHT
    nested = {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert json_schema("[" * 600 + "]" * 600, nested) == WRONG  # deeper than the validator can follow
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: fetched.append(args))
    with pytest.raises(Exception, match="example"):
        json_schema("3", {"$ref": "http://example.invalid/schema.json"})
    assert fetched == []
    for reference in ({"type": "nothing"}, "{", 3, None, "[1]"):
        with pytest.raises(ValueError, match="must be a JSON schema"):
            json_schema("3", reference)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>2+2</think>4", 1.0),
        ("\n<think>\n2+2\n</think>\n\n4\n", 1.0),
        ("<think></think>4", 1.0),
        ("<think>2+2</think>", 0.0),
        ("<think>2+2</think> \n", 0.0),
        ("<think>2+2</think>\u200b\u202e", 0.0),  # nothing that can be seen
        ("<think>2+2", 0.0),
        ("2+2</think>4", 0.0),
        ("4", 0.0),
        ("", 0.0),
        ("Well: <think>2+2</think>4", 0.0),
        ("<think>2</think>4<think>5</think>6", 0.0),
        ("<think><think>2</think>4", 0.0),
        ("<think>2</think>4</think>", 0.0),
        ("</think>4<think>", 0.0),
        ("<THINK>2</THINK>4", 0.0),
    ],
)
def test_format(text, reward):
    assert thinking_format(text, None) == Score(reward=reward)


def test_format_with_other_tags():
    assert thinking_format("[r]x[/r]4", None, opening="[r]", closing="[/r]").reward == 1.0
    assert thinking_format("<think>x</think>4", None, opening="[r]", closing="[/r]").reward == 0.0
    assert thinking_format("x</think>4", None, opening="").reward == 1.0  # the prompt ends with <think>


@pytest.mark.parametrize(
    ("characters", "reward"), [(0, 0.0), (100, 0.0), (125, -0.25), (150, -0.5), (200, -1.0), (5000, -1.0)]
)
def test_length(characters, reward):
    score = length("x" * characters, None, start=100, cap=200)
    assert score == Score(reward=reward)
    assert str(score.reward) == str(reward)  # 0.0 and not -0.0, which is equal

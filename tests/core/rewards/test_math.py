"""The verifier `math`: what is equal, what counts as an answer, and what it costs."""

from __future__ import annotations

import threading

import pytest

from maxpo.rewards.base import Score
from maxpo.rewards.verifiers import math_answer
from maxpo.rewards.verifiers.math_answer import math_answer as verify

RIGHT = Score(reward=1.0, success=True, parts={"format": 1.0})
WRONG = Score(reward=0.0, success=False, parts={"format": 1.0})
MALFORMED = Score(reward=0.0, success=False, parts={"format": 0.0})


@pytest.mark.parametrize(
    ("content", "reference"),
    [
        ("42", 42),
        ("42.0", 42),
        ("0042", "42"),
        ("0.5", "1/2"),
        ("1/2", "0.5"),
        (r"\frac12", 0.5),
        (r"\frac{2}{4}", r"$\frac{1}{2}$"),
        (r"\dfrac{1}{2}", r"\boxed{\frac12}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1,234"),
        ("10^{10}", "10000000000"),
        ("5!", "120"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("2, 1", "1, 2"),
        ("[0, 1)", r"\left[0,1\right)"),
        (r"x \in [0,1)", "[0,1)"),
        (r"(-\infty, 3)", r"(-\infty,3)"),
        ("(1, 2)", "(1,2)"),
        ("3 > x", "x < 3"),
        ("x = 3", "3"),
        ("3", "x=3"),
        ("(x+1)^2", "x^2+2x+1"),
        ("4i + 3", "3+4i"),
        (r"5\text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        (r"50\%", "0.5"),
        (r"\$5", "5"),
        (r"\text{Monday}", r"\text{Monday}"),
        ("0.333333", "1/3"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"),
        ("(" * 9 + r"\frac{84}{2}" + ")" * 9, "42"),
        ("2+3", "5"),  # not worked out, but equal
    ],
)
def test_equal(content, reference):
    assert verify(rf"So the answer is $\boxed{{{content}}}$.", reference) == RIGHT


@pytest.mark.parametrize(
    ("content", "reference"),
    [
        ("41", 42),
        ("-42", 42),
        ("42, 43", 42),
        ("42 or 43", 42),
        (r"\{42, 43\}", 42),
        ("0.33", "1/3"),
        ("3.14159", r"\pi"),
        (r"\{1, 2, 3\}", r"\{1, 2\}"),
        ("1", "1, 2"),
        ("(0, 1)", "[0,1)"),
        ("(2, 1)", "(1, 2)"),
        ("x > 3", "x < 3"),
        ("(x+1)^2", "x^2+1"),
        ("y = 3", "x = 3"),
        ("1/0", "1"),
        (r"\text{Tuesday}", r"\text{Monday}"),
        ("5", "50"),
    ],
)
def test_not_equal(content, reference):
    assert verify(rf"\boxed{{{content}}}", reference) == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "The answer is 42.",
        "The final answer is $42$. I hope it is correct.",
        r"\[ 42 \]",
        r"\boxed{42",
        r"\boxed{4 2}",
        r"\boxed{42} but wait, \boxed{",  # the last one counts
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed{42\}",
        r"\boxed{\frac{}{}}",
        "\\boxed{4\u200b2}",
        "\\boxed{\uff14\uff12}",
        "\\boxed{\u0664\u0662}",
        "\\boxed{42\x00}",
        "\\boxed{\ud800}",
        r"\boxed{" + "4" * 301 + "}",
        r"\boxed{" + "(" * 11 + "42" + ")" * 11 + "}",
        r"\boxed{" + "[{(" * 4 + "42" + "}",
        r"\boxed{" + "{" * 10_000 + "42" + "}" * 10_000 + "}",
    ],
)
def test_no_answer_in_a_box(text):
    assert verify(text, 42) == MALFORMED


def test_the_last_box_counts():
    assert verify(r"\boxed{41}, no: \boxed{42}", 42) == RIGHT
    assert verify(r"\boxed{42}, no: \boxed{41}", 42) == WRONG


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The answer is 42.", RIGHT),
        ("Answer: 1/2", WRONG),
        ("The final answer is $42$. I hope it is correct.", RIGHT),
        ("The answer is $41$, no: answer: $42$", RIGHT),
        (r"The answer is 41, \boxed{42}", RIGHT),
        (r"The answer is 42, \boxed{41}", WRONG),  # a box goes before words
        (r"The answer is 42, \boxed{", MALFORMED),  # and does so where it is broken
        ("It is 42", MALFORMED),
        ("$42$", MALFORMED),
        ("The answer is 42." + "x" * 300, MALFORMED),  # only the end is read
    ],
)
def test_without_a_box(text, score):
    assert verify(text, 42, boxed=False) == score


def test_an_answer_may_be_as_long_as_is_set():
    assert verify(r"\boxed{  42}", 42, longest=4) == RIGHT
    assert verify(r"\boxed{   42}", 42, longest=4) == MALFORMED
    assert verify("answer: 42", 42, boxed=False, longest=10) == RIGHT
    assert verify("answer: 42", 42, boxed=False, longest=9) == MALFORMED


@pytest.mark.parametrize("reference", ["", " ", r"\frac{", "1" * 2001, r"\boxed{", "1/0", "4 2", "=", "5 5", r"\foo"])
def test_a_reference_that_makes_no_sense_raises(reference):
    with pytest.raises(ValueError, match="the reference must be LaTeX or a number"):
        verify(r"\boxed{1}", reference)


def test_a_reference_is_parsed_once(monkeypatch):
    parsed: list[str] = []
    read = math_answer.read
    monkeypatch.setattr(math_answer, "read", lambda content: parsed.append(content) or read(content))
    math_answer._gold.cache_clear()
    for text in (r"\boxed{7}", r"\boxed{8}", "7"):
        verify(text, "5+2")
    assert parsed == ["5+2", "7", "8"]


def test_it_needs_no_main_thread():
    scores: list[Score] = []
    thread = threading.Thread(target=lambda: scores.append(verify(r"\boxed{\frac{3}{6}}", "0.5")))
    thread.start()
    thread.join()
    assert scores == [RIGHT]

"""Numbers in any spelling are right exactly if their values are equal."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from maxpo.rewards.maths.values import is_terminating
from maxpo.rewards.verifiers.math_answer import math_answer
from maxpo.rewards.verifiers.numeric import numeric

EXAMPLES = int(os.environ.get("MAXPO_EXAMPLES", "200"))
VALUES = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=5000)
DECIMALS = st.builds(
    lambda digits, places: Fraction(digits, 10**places), st.integers(-(10**9), 10**9), st.integers(0, 30)
)


def decimal(value: Fraction) -> str:
    """A number that terminates, in full."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    text = digits[: len(digits) - places] + ("." + digits[len(digits) - places :] if places else "")
    return ("-" if value < 0 else "") + text


def grouped(text: str) -> str:
    """The same with separators of thousands."""
    whole, point, places = text.partition(".")
    return f"{int(whole):,}".replace("-0", "0") + point + places if whole not in ("-0",) else text


def mixed(value: Fraction) -> str:
    whole, rest = divmod(abs(value), 1)
    text = f"{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}" if whole and rest else str(abs(value))
    return ("-" if value < 0 else "") + text


def spellings(value: Fraction) -> list[str]:
    sign, size = ("\u2212" if value < 0 else ""), abs(value)
    texts = [str(value), f"{sign}{size}", f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}", mixed(value)]
    if is_terminating(value):
        text = decimal(value)
        texts += [text, text.replace("-", "\u2212"), grouped(text), f"{decimal(value * 1000)}e-3"]
        texts += [f"{decimal(value / 100)} \\times 10^{{2}}", f"{decimal(value * 1000)}\\cdot10^{{-3}}"]
    return texts


JUDGES: tuple[Callable[[str, str], bool | None], ...] = (
    lambda answer, reference: math_answer(f"\\boxed{{{answer}}}", reference).success,
    lambda answer, reference: numeric(f"The answer is {answer}.", reference, tolerance=0.0).success,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(VALUES, DECIMALS))
def test_every_spelling_of_a_number_is_right(value: Fraction) -> None:
    for text in spellings(value):
        for judge in JUDGES:
            assert judge(text, str(value)), text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(VALUES, DECIMALS), st.one_of(VALUES, DECIMALS, st.sampled_from([-1, 2, 10, Fraction(1, 10), 1000])))
def test_other_numbers_are_wrong(value: Fraction, other: Fraction) -> None:
    for changed in (value + other, value * other):
        if changed == value or abs(changed - value) * 10**5 < abs(value):
            continue
        for text in spellings(changed):
            for judge in JUDGES:
                assert not judge(text, str(value)), text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(-(10**18), 10**18), st.integers(-9, 9))
def test_integers_are_exact(value: int, off: int) -> None:
    for judge in JUDGES:
        assert judge(str(value + off), str(value)) == (off == 0)
    assert numeric(f"It is {value + off}", value).success == (off == 0)

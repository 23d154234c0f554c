"""The verifier for mathematical answers in LaTeX, compared by math-verify.

The name `math.py` would hide the standard library's `math` within `maxpo.rewards`.
"""

from __future__ import annotations

import importlib
import logging
import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from maxpo.rewards.base import Score
from maxpo.rewards.verifiers.boxed import last_boxed

_LONGEST_REFERENCE = 2000
"""Most characters of a reference. The limit is higher than for an answer, because references are trusted."""
_DEEPEST = 11
"""Deepest nesting of brackets, including those of the box."""


def math_answer(text: str, reference: object, *, boxed: bool = True, longest: int = 300) -> Score:
    r"""Return reward 1 if the last boxed answer equals the reference, otherwise 0.

    Equality is the strict comparison of math-verify 0.9. Equal are 1/2, 0.5 and `\frac12`, sets in any order,
    intervals, and expressions that simplify to the same. Numbers with a decimal point are compared to 6 digits after
    the point. Units are ignored, and 50 equals 50%. An unevaluated answer, such as 2+3 for 5, is equal too.

    Brackets nested more than 10 deep are not read, because the parser's time doubles with each level. At most `longest`
    characters are parsed. This function has no time limit, since that of math-verify needs the main thread. The process
    of an answer that takes too long is killed.

    Args:
        text: Any text.
        reference: LaTeX or a number, with or without dollar signs or a box.
        boxed: True if only an answer in `\boxed{}` counts. If False and the text has no box, an answer after the words
            "answer" or "final answer is" within the last `longest` characters counts too.
        longest: Most characters of a box. A longer box is not read.

    Returns:
        The reward, and the part `format`: 1 if an answer could be parsed, otherwise 0.

    Raises:
        ValueError: The reference cannot be parsed.
    """
    gold = _gold(str(reference))
    parsed = _parsed(text, boxed, longest)
    if not parsed:
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    right = bool(_library().verify(gold, parsed, timeout_seconds=None))
    return Score(reward=float(right), success=right, parts={"format": 1.0})


def answer(text: str, *, boxed: bool = True, longest: int = 300) -> str | None:
    r"""Return the answer in one spelling, for `maj@n`, or None if none could be parsed.

    The parsed answer is written as text. 1/2, `\frac12`, 0.5 and 3/6 give the same text, and so do sets in any order,
    or x+1 and 1+x. Decimals become the nearest fraction with a denominator of at most a million. Nothing is evaluated
    or simplified further, because the cost has no bound. So 2+3 and 5 give different texts.
    """
    parsed = _parsed(text, boxed, longest)
    if not parsed:
        return None
    if getattr(parsed[0], "is_Float", False) and math.isfinite(value := float(parsed[0])):
        return str(Fraction(value).limit_denominator(10**6))
    return str(parsed[0])


def _parsed(text: str, boxed: bool, longest: int) -> list[Any]:
    """Return the answer as parsed by math-verify. Empty if there is none."""
    content = last_boxed(text, longest)
    if content is not None:
        return _parse(content)
    if boxed or "\\boxed" in text:
        return []
    return _parse_anchored(text[-longest:])


def _depth(text: str) -> int:
    """Return the depth of nested brackets of any kind, even if they do not match."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


@lru_cache(maxsize=4096)
def _gold(reference: str) -> list[object]:
    """Return the parsed reference, cached for the N answers of a group and for later epochs."""
    content = last_boxed(reference, _LONGEST_REFERENCE) if "\\boxed{" in reference else reference.strip()
    gold = _parse(content) if content and len(content) <= _LONGEST_REFERENCE else []
    if not gold:
        raise ValueError(f"math: the reference must be LaTeX or a number, got {reference[:80]!r}")
    return gold


@cache
def _library() -> Any:
    """Return math-verify, which has no types and imports sympy, so it is loaded when needed."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # math-verify warns that its time limit is off
    return importlib.import_module("math_verify")


@cache
def _latex() -> Any:
    r"""Return the configuration that reads LaTeX in a box or after an anchor, and no other formula."""
    normalization: Any = importlib.import_module("latex2sympy2_extended").NormalizationConfig
    return _library().LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        # malformed_operators reads `\frac12` and `\sqrt3`, which are valid LaTeX. nits repairs invalid LaTeX.
        normalization_config=normalization(
            basic_latex=True, units=True, malformed_operators=True, nits=False, boxed="all", equations=False
        ),
    )


def _parse(content: str) -> list[object]:
    return _extract("\\boxed{" + content + "}", [_latex()])


def _parse_anchored(tail: str) -> list[object]:
    return _extract(tail, [_latex(), _library().ExprExtractionConfig(try_extract_without_anchor=False)])


def _extract(text: str, targets: list[object]) -> list[object]:
    """Return the rightmost match of the first kind that occurs, if it can be parsed. Never returns plain text."""
    if _depth(text) > _DEEPEST:
        return []
    return _library().parse(
        text, targets, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )

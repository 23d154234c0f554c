r"""math-verify, for notation that the grammar does not cover: integrals, sums, limits, determinants."""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache
from typing import Any

from maxpo.rewards.maths.nodes import MalformedError
from maxpo.rewards.maths.spelling import plain
from maxpo.rewards.maths.tokens import tokens

_DIGITS = 30


def parse(text: str) -> Any:
    """Return the sympy expression of a text.

    Words and chains of equations are not read, because the library drops the one and cuts the other.

    Raises:
        MalformedError: The library cannot read the text.
    """
    spelled = plain(text)
    outside = re.sub(r"_\s*\{[^{}]*\}", "", spelled)
    if "=" in outside or any(t.kind == "word" or (t.kind == "letters" and len(t.text) > 3) for t in tokens(spelled)):
        raise MalformedError("words or equations within notation that only the library reads")
    parsed = _library().parse(
        "\\boxed{" + text + "}",
        [_latex()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    if not parsed:
        raise MalformedError("the library cannot read it")
    return parsed[0]


def equal(answer: Any, reference: Any) -> bool:
    """Return True if two sympy expressions are equal: numbers to 30 digits, others by math-verify."""
    if is_number(answer) and is_number(reference):
        a, r = answer.doit().evalf(_DIGITS + 10), reference.doit().evalf(_DIGITS + 10)
        if a.is_number and r.is_number and a.is_finite and r.is_finite:
            return bool(abs(a - r) <= 10**-_DIGITS * max(abs(a), abs(r)))
    return bool(_library().verify([reference], [answer], timeout_seconds=None))


def is_number(expression: Any) -> bool:
    """Return True if a sympy expression is a number, though perhaps not a computed one."""
    return bool(getattr(expression, "is_number", False)) and not expression.free_symbols


@cache
def _library() -> Any:
    """Return math-verify, which has no types and imports sympy, so it is loaded when needed."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # math-verify warns that its time limit is off
    return importlib.import_module("math_verify")


@cache
def _latex() -> Any:
    """Return the configuration that reads one formula and drops nothing from it."""
    normalization: Any = importlib.import_module("latex2sympy2_extended").NormalizationConfig
    return _library().LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        # malformed_operators reads `\frac12` and `\sqrt3`, which are valid LaTeX. units and nits change the meaning.
        normalization_config=normalization(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="all", equations=False
        ),
    )

"""The verifier for free text that ends with a number."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from maxpo.rewards.base import Score
from maxpo.rewards.maths.grammar import read
from maxpo.rewards.maths.nodes import MalformedError, Node
from maxpo.rewards.maths.prose import last_number
from maxpo.rewards.maths.values import NoValueError, exact, is_terminating
from maxpo.rewards.maths.words import read_unit
from maxpo.rewards.references import alternatives

TOLERANCE = Fraction(1, 10**6)
"""Largest relative error where no tolerance is set and the reference is no integer."""
_PERCENT_ABOVE = 1
"""A percent sign may be missing on one side if the number is more than this."""


def numeric(text: str, reference: object, *, tolerance: float | None = None) -> Score:
    r"""Return reward 1 if the last number in the text equals the reference, otherwise 0.

    Numbers are `42`, `-1.5`, `.5`, `1,234`, `2e3`, `1.5 \times 10^3`, `3/4`, `2 1/2`, `50%` and `5 million`, with any
    minus sign. A full stop or unit after a number is ignored. A number that is part of a larger expression is not read.

    Args:
        text: Any text. A last number of more than 64 characters is not read.
        reference: A finite number, its text (`"1,234"`), or a list of alternatives.
        tolerance: Largest allowed error, relative to the reference. null: 1e-6, but integers must be met exactly.

    Returns:
        The reward, and the part `format`: 1 if the text has a number that could be read, otherwise 0.

    Raises:
        ValueError: The reference is not a finite number.
    """
    wanted = [_reference(text) for text in alternatives("numeric", reference)]
    got = last_number(text)
    if got is None:
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    equal = any(_equal(got, node, tolerance) for node in wanted)
    return Score(reward=float(equal), success=equal, parts={"format": 1.0})


def answer(text: str, *, tolerance: float | None = None) -> str | None:
    """Return the last number, for `maj@n`, or None. 12, 12.0 and 1.2e1 are equal. `tolerance` is not used."""
    got = last_number(text)
    value = None if got is None else _value(got)
    if value is None:
        return None
    return str(value) if not is_terminating(value) or value.denominator == 1 else str(float(value))


def _equal(got: Node, wanted: Node, tolerance: float | None) -> bool:
    if _close(_value(got), _value(wanted), tolerance):
        return True
    if (got.kind == "percent") == (wanted.kind == "percent"):
        return False
    a, r = (_value(node.args[0] if node.kind == "percent" else node) for node in (got, wanted))
    return abs(r) > _PERCENT_ABOVE and _close(a, r, tolerance)


def _close(got: Fraction, wanted: Fraction, tolerance: float | None) -> bool:
    if tolerance is None:
        tolerance = 0 if wanted.denominator == 1 else float(TOLERANCE)
    return abs(got - wanted) <= Fraction(str(tolerance)) * abs(wanted)


def _value(node: Node) -> Fraction:
    value = exact(node)
    assert value is not None
    return value


@lru_cache(maxsize=4096)
def _reference(text: str) -> Node:
    """Return the number of a reference, which must be all of its text.

    Raises:
        ValueError: The text is not one finite number.
    """
    try:
        node = read(text)
        node = node.args[0] if node.kind == "unit" and read_unit(node.name) is not None else node
        value = exact(node)
    except (MalformedError, NoValueError):
        value = node = None
    if value is None or node is None:
        raise ValueError(f"numeric: the reference must be a finite number, got {text[:80]!r}")
    return node

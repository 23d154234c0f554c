"""The verifier for free text that ends with a number."""

from __future__ import annotations

import math
import re

from maxpo.rewards.base import Score

# A sign counts only where it cannot be an operator (`5-3` ends with 3). Groups of digits are taken greedily and
# checked afterwards, so the search never backtracks and stays linear in the text.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+])?"
    r"(?P<digits>[0-9]++(?:,[0-9]++)*+|(?=\.[0-9]))"
    r"(?P<rest>(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?)"
)
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})*+")
_LONGEST = 64
"""Most characters of a number. A longer number is not read."""


def numeric(text: str, reference: object, *, tolerance: float = 1e-6) -> Score:
    """Return reward 1 if the last number in the text equals the reference, otherwise 0.

    Numbers are ASCII decimals: `42`, `-1.5`, `.5`, `1,234`, `2e3`. A full stop or unit after a number is ignored.
    Equal means |number - reference| <= tolerance |reference|, so a reference of 0 must be met exactly.

    Args:
        text: Any text. A last number of more than 64 characters is not read.
        reference: A finite number, or its text (`"1,234"`).
        tolerance: Largest allowed error, relative to the reference.

    Returns:
        The reward, and the part `format`: 1 if the text has a number that could be read, otherwise 0.

    Raises:
        ValueError: The reference is not a finite number.
    """
    wanted = float(str(reference).replace(",", ""))
    if not math.isfinite(wanted):
        raise ValueError(f"numeric: the reference must be a finite number, got {reference!r}")
    got = _value(text)
    if got is None:
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    equal = abs(got - wanted) <= tolerance * abs(wanted)
    return Score(reward=float(equal), success=equal, parts={"format": 1.0})


def answer(text: str, *, tolerance: float = 1e-6) -> str | None:
    """Return the last number, for `maj@n`, or None. 12, 12.0 and 1.2e1 are equal. `tolerance` is not used."""
    got = _value(text)
    return None if got is None else str(got + 0.0)  # -0.0 becomes 0.0


def _value(text: str) -> float | None:
    number = _last_number(text)
    if number is None or len(number) > _LONGEST:
        return None
    return float(number)  # 1e999 becomes inf, which equals no finite reference


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    if last is None:
        return None
    sign, digits, rest = last["sign"] or "", last["digits"], last["rest"]
    if "," in digits and not _THOUSANDS.fullmatch(digits):
        return digits.rpartition(",")[2] + rest  # a list such as 3,4
    return sign + digits.replace(",", "") + rest

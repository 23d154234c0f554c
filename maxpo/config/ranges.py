"""Ranges of settings, written beside the field: `steps: Annotated[int, COUNT]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Arguments = dict[str, Any]
"""Type of a setting that is a mapping whose values are of any type."""


@dataclass(frozen=True, slots=True)
class Must:
    """Condition on the value of a setting, besides its type."""

    holds: Callable[[Any], bool]
    """Predicate of the value."""
    message: str
    """Full sentence for errors and for `maxpo config explain`, such as "Must be more than 0."."""

    def accepts(self, value: object) -> bool:
        """Return True if the condition holds. Null always passes: the type decides if null is allowed.

        A value that the condition cannot judge is not accepted: one of another type, or a path that is too long.
        """
        try:
            return value is None or self.holds(value)
        except (TypeError, ValueError, OSError):
            return False


def between(low: float, high: float, why: str = "") -> Must:
    """Return the condition `low <= value <= high`. The message gives the reason `why`, if any."""
    return Must(lambda value: low <= value <= high, f"Must be {low:.15g} to {high:.15g}{why and f': {why}'}.")


def above_zero(high: float, why: str = "") -> Must:
    """Return the condition `0 < value <= high`. The message gives the reason `why`, if any."""
    return Must(lambda value: 0 < value <= high, f"Must be more than 0 and at most {high:.15g}{why and f': {why}'}.")


def each(low: float, high: float, *, least: int = 0) -> Must:
    """Return the condition that every item of a list is `low` to `high`, and that there are at least `least`."""
    some = f"There must be at least {least}. " if least else ""
    return Must(
        lambda value: len(value) >= least and all(low <= item <= high for item in value),
        f"{some}Each must be {low:.15g} to {high:.15g}.",
    )


def matches(pattern: str, message: str) -> Must:
    """Return the condition that the regular expression `pattern` matches the full text, with ASCII classes."""
    return Must(lambda value: re.fullmatch(pattern, value, re.ASCII) is not None, message)


BILLION = 10**9
COUNT = between(1, BILLION)
COUNT_OR_NONE = between(0, BILLION)
"""Number of things, of which 0 has a meaning of its own."""
PROCESSES = between(1, 10_000)
SECONDS = above_zero(10**7)
FACTOR = above_zero(10**6)
"""Number that multiplies or divides others."""
FACTOR_OR_NONE = between(0, 10**6)

"""Ranges of settings, written beside the field: `steps: Annotated[int, POSITIVE]`."""

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
        """Return True if the condition holds. Null always passes: the type decides if null is allowed."""
        try:
            return value is None or self.holds(value)
        except TypeError:  # An escaped interpolation may have left a value of another type.
            return False


def at_least(low: float, why: str = "") -> Must:
    """Return the condition `value >= low`. The message gives the reason `why`, if any."""
    return Must(lambda value: value >= low, f"Must be {low:g} or more{why and f': {why}'}.")


def matches(pattern: str, message: str) -> Must:
    """Return the condition that the regular expression `pattern` matches the full text, with ASCII classes."""
    return Must(lambda value: re.fullmatch(pattern, value, re.ASCII) is not None, message)


POSITIVE = Must(lambda value: value > 0, "Must be more than 0.")
NOT_NEGATIVE = at_least(0)

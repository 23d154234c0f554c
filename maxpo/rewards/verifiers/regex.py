"""The verifier that matches a regular expression."""

from __future__ import annotations

import re
from typing import Literal

from maxpo.rewards.base import Score


def regex(
    text: str, reference: object, *, pattern: str | None = None, mode: Literal["fullmatch", "search"] = "fullmatch"
) -> Score:
    """Return reward 1 if the pattern matches, otherwise 0. The process of a slow pattern is killed.

    Args:
        text: Any text.
        reference: Pattern of Python's `re` if `pattern` is None, otherwise not used.
        pattern: Pattern for all answers. None if each reference is a pattern.
        mode: `fullmatch` matches all text, including white space at both ends. `search` matches anywhere in the text.

    Raises:
        ValueError: The pattern is not a valid regular expression.
    """
    source = reference if pattern is None else pattern
    if not isinstance(source, str):
        raise ValueError(f"regex: the reference must be a pattern, got {reference!r}")
    try:
        compiled = re.compile(source)  # re caches the last 512 patterns
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"regex: the reference must be a pattern, got {source[:80]!r}: {error}") from error
    match = compiled.search(text) if mode == "search" else compiled.fullmatch(text)
    return Score(reward=float(match is not None), success=match is not None)

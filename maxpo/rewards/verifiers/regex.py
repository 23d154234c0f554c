"""The verifier that asks a regular expression."""

from __future__ import annotations

import re
from typing import Literal

from maxpo.rewards.base import Score


def regex(
    text: str, reference: object, *, pattern: str | None = None, mode: Literal["fullmatch", "search"] = "fullmatch"
) -> Score:
    """Return reward 1 if the pattern matches, otherwise 0. Python's `re`; a slow pattern is killed with its process.

    Args:
        text: Any text.
        reference: The pattern, where `pattern` is null; otherwise not looked at.
        pattern: One pattern for every answer.
        mode: `fullmatch`: the whole text, white space at its ends included; `search`: anywhere in it.

    Raises:
        ValueError: The reference is not a pattern.
    """
    source = reference if pattern is None else pattern
    if not isinstance(source, str):
        raise ValueError(f"regex: the reference must be a pattern, got {reference!r}")
    try:
        compiled = re.compile(source)  # re keeps the last 512 itself
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"regex: the reference must be a pattern, got {source[:80]!r}: {error}") from error
    match = compiled.search(text) if mode == "search" else compiled.fullmatch(text)
    return Score(reward=float(match is not None))

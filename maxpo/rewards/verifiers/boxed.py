r"""A search for the last `\boxed{...}` of a text, without a LaTeX parser."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?=[-+\u2212.0-9\\]|[A-Z](?![A-Za-z])))")
_BARE = re.compile(r"[^\s$]+")
"""The content of a box without braces, such as `\\boxed 5`."""


def last_boxed(text: str, longest: int) -> str | None:
    r"""Return the content of the last box, braces matched, ignoring characters after a backslash.

    A box is `\boxed{...}`, `\fbox{...}`, or `\boxed` before a number, a command or a capital letter.

    Args:
        text: Any string.
        longest: Number of characters that are read after the opening brace, which bounds the cost of a text full of
            braces.

    Returns:
        The content. None if there is no box, or if the last box does not end within `longest` characters.
    """
    box = None
    for found in _BOX.finditer(text):
        box = found
    if box is None:
        return None
    start = box.end()
    if box["brace"] is None:
        bare = _BARE.match(text, start, start + longest + 1)
        content = "" if bare is None else bare[0]
        return content.removesuffix("\\)").removesuffix("\\]").rstrip(".,;*") if len(content) <= longest else None
    depth, escaped = 1, False
    for position, character in enumerate(text[start : start + longest + 1], start):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
    return None


def has_box(text: str) -> bool:
    """Return True if a text has a box, also if it does not end."""
    return _BOX.search(text) is not None

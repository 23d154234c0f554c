r"""A search for the last `\boxed{...}` of a text, without a LaTeX parser."""

from __future__ import annotations

_OPENING = "\\boxed{"


def last_boxed(text: str, longest: int) -> str | None:
    r"""Return the content of the last `\boxed{...}`, braces matched, ignoring characters after a backslash.

    Args:
        text: Any string.
        longest: Number of characters that are read after the opening brace, which bounds the cost of a text full of
            braces.

    Returns:
        The content. None if there is no box, or if the last box does not end within `longest` characters.
    """
    opening = text.rfind(_OPENING)
    if opening < 0:
        return None
    start = opening + len(_OPENING)
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

r"""Find the last `\boxed{...}` of a text, which is not worth a LaTeX parser."""

from __future__ import annotations

_OPENING = "\\boxed{"


def last_boxed(text: str, longest: int) -> str | None:
    r"""Return the content of the last `\boxed{...}`, braces matched, ignoring characters after a backslash.

    Args:
        text: Any string.
        longest: Characters that are looked at after the brace, so a text full of braces costs no more than this.

    Returns:
        The content; None if there is no box, or the last one does not end within `longest` characters.
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

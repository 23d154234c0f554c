"""The verifier `format`, for a thinking block and then an answer. A module named `format` would hide a builtin."""

from __future__ import annotations

from maxpo.rewards.base import Score

OPENING = "<think>"
"""Default of `opening`."""
CLOSING = "</think>"
"""Default of `closing`."""


def thinking_format(text: str, reference: object, *, opening: str = OPENING, closing: str = CLOSING) -> Score:
    """Return reward 1 if the text is one thinking block followed by visible characters, otherwise 0.

    The format says nothing about the answer, so this verifier has no opinion about success.

    Args:
        text: Any text. White space before the block is ignored.
        reference: Not used.
        opening: Tag that starts the text and occurs once. Empty if the prompt already ends with the tag.
        closing: Tag that ends the block and occurs once.
    """
    if opening and (not text.lstrip().startswith(opening) or text.count(opening) != 1):
        return Score(reward=0.0)
    _, found, answer = text.partition(closing)
    # Characters without a width are not printable, so an answer needs other characters too.
    visible = any(c.isprintable() and not c.isspace() for c in answer)
    return Score(reward=float(bool(found) and closing not in answer and visible))

"""The verifier `format`: a thinking block, then an answer. (A module `format.py` would hide a word of Python.)"""

from __future__ import annotations

from maxpo.rewards.base import Score


def thinking_format(text: str, reference: object, *, opening: str = "<think>", closing: str = "</think>") -> Score:
    """Return reward 1 if the text is one thinking block and then something that can be seen, otherwise 0.

    Args:
        text: Any text. White space before the block does no harm.
        reference: Not used.
        opening: What the text begins with, and holds once. Empty where the prompt ends with it already.
        closing: What ends the block; the text holds it once.
    """
    if opening and (not text.lstrip().startswith(opening) or text.count(opening) != 1):
        return Score(reward=0.0)
    _, found, answer = text.partition(closing)
    # Characters without a width are not printable, so they alone are no answer.
    visible = any(c.isprintable() and not c.isspace() for c in answer)
    return Score(reward=float(bool(found) and closing not in answer and visible))

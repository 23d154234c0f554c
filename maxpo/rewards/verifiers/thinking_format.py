"""The verifier `format`: a thinking block, then an answer. (A module `format.py` would hide a word of Python.)"""

from __future__ import annotations

from typing import Any

from maxpo.rewards.base import Score


def thinking_format(text: str, reference: Any, *, opening: str = "<think>", closing: str = "</think>") -> Score:
    """Reward 1 if the text is one thinking block and then something that can be seen, otherwise 0.

    Args:
        text: The answer; any string. White space before the block does no harm.
        reference: Not looked at.
        opening: What the text begins with, and holds once. Empty where the prompt ends with it already.
        closing: What ends the block; the text holds it once.
    """
    if opening and (not text.lstrip().startswith(opening) or text.count(opening) != 1):
        return Score(reward=0.0)
    _, found, answer = text.partition(closing)
    # Characters without a width are not printable, so an answer of nothing else is none.
    visible = any(c.isprintable() and not c.isspace() for c in answer)
    return Score(reward=float(bool(found) and closing not in answer and visible))

"""The verifier for answers that must be given word for word."""

from __future__ import annotations

from maxpo.rewards.base import Score
from maxpo.rewards.references import alternatives


def exact(text: str, reference: object) -> Score:
    """Return reward 1 if the text equals the reference, white space at both ends aside, otherwise 0.

    Args:
        text: Any text.
        reference: Text, a number, or a list of alternatives.

    Raises:
        ValueError: The reference is null, true, false or an object.
    """
    right = text.strip() in {wanted.strip() for wanted in alternatives("exact", reference)}
    return Score(reward=float(right), success=right)


def answer(text: str) -> str | None:
    """Return the text itself, for `maj@n`, or None if it is blank."""
    return text.strip() or None

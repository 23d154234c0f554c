"""The verifier for answers that must be given word for word."""

from __future__ import annotations

from maxpo.rewards.base import Score


def exact(text: str, reference: object) -> Score:
    """Return reward 1 if the text equals `str(reference)`, white space at both ends aside, otherwise 0."""
    right = text.strip() == str(reference).strip()
    return Score(reward=float(right), success=right)


def answer(text: str) -> str | None:
    """Return the text itself, for `maj@n`, or None if it is blank."""
    return text.strip() or None

"""The verifier for answers that must be given word for word."""

from __future__ import annotations

from typing import Any

from maxpo.rewards.base import Score


def exact(text: str, reference: Any) -> Score:
    """Reward 1 if the text equals `str(reference)`, white space at both ends aside, otherwise 0."""
    return Score(reward=float(text.strip() == str(reference).strip()))


def answer(text: str) -> str | None:
    """The text itself, for `maj@n`: it is all answer; None where it is blank."""
    return text.strip() or None

"""Types of verifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one answer."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers for the log, for example whether the format was right."""


Verifier = Callable[..., Score]
"""Scores an answer. Arguments: text, reference, and settings by name."""


def environment_reward(text: str, reference: object) -> Score:
    """Return reward 0 for any text, so that the rewards of an episode are those of its environment."""
    return Score(reward=0.0)

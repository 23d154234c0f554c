"""What a verifier is and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The verdict on one answer."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers for the log, for example whether the format was right."""


Verifier = Callable[..., Score]
"""Called with text and reference, and settings by name."""


def environment_reward(text: str, reference: Any) -> Score:
    """Reward 0 for any text: the rewards of an episode are those that its environment gave."""
    return Score(reward=0.0)

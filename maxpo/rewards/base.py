"""Types of verifiers, and the rules for success and for sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

DIGITS = 12
"""Significant digits of a reward. Rewards that differ by rounding only are equal numbers then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one answer."""

    reward: float
    success: bool | None = None
    """True if the answer is right, False if not. None: the verifier has no opinion, such as a penalty for length."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers for the log, for example whether the format was right."""


Verifier = Callable[..., Score]
"""Scores an answer. Arguments: text, reference, and settings by name."""


def environment_reward(text: str, reference: object) -> Score:
    """Return reward 0 for any text and no opinion, so that an episode is judged by its environment."""
    return Score(reward=0.0)


def succeeds(reward: float) -> bool:
    """Return True if a reward is 1 or more, up to rounding: the rule where nothing else says what a success is."""
    return reward > 1 or math.isclose(reward, 1)


def agreed(opinions: Iterable[bool | None]) -> bool | None:
    """Return True if every opinion is a success, False if one is not, None if there is no opinion."""
    known = [opinion for opinion in opinions if opinion is not None]
    return all(known) if known else None


def add_up(rewards: Collection[float]) -> float:
    """Return the sum, rounded to `DIGITS` significant digits of the largest summand.

    So 0.1 + 0.2 is 0.3, and 0.1 + 0.2 - 0.3 is 0. A difference that rounding alone has made would be a signal for the
    estimators.
    """
    total, largest = float(sum(rewards)), max(map(abs, rewards), default=0.0)
    if not 0 < largest < 1e300:  # the rounded value of a larger number may overflow
        return total
    return round(total, DIGITS - 1 - math.floor(math.log10(largest))) + 0.0  # 0.0, not -0.0

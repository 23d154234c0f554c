"""Verifiers: pure functions from an answer's text and the reference to a reward.

They run in killable processes (`rollout/reward_pool.py`), so this package imports nothing heavy.
A verifier judges any text without raising; a reference that makes no sense raises.
"""

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


Verifier = Callable[[str, Any], Score]

# Below the definitions because the verifiers import `Score` from here.
from maxpo.rewards import countdown, exact, numeric  # noqa: E402

REWARDS: dict[str, Verifier] = {
    "countdown": countdown.countdown,
    "exact": exact.exact,
    "numeric": numeric.numeric,
}

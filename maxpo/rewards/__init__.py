"""Verifiers: pure functions from an answer's text and the reference to a reward.

They run in killable processes (`rollout/reward_pool.py`), so this package imports nothing heavy.
A verifier judges any text without raising; a reference that makes no sense raises.
"""

from __future__ import annotations

import importlib
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


def find_verifier(name: str) -> Verifier:
    """A verifier of `REWARDS`, or one of your own as `package.module:function`.

    Raises:
        ValueError: there is no such verifier; the message lists what is allowed.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"no verifier is called {name!r}: use one of {sorted(REWARDS)}, or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"verifier {name!r} cannot be imported: {error}") from error
    return found

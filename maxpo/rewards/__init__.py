"""Verifiers: pure functions from an answer's text and the reference to a reward.

They run in killable processes (`rollout/reward_pool.py`), so this package imports nothing heavy.
A verifier judges any text without raising; a reference that makes no sense raises.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast


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


Judge = Callable[[str, str, Any], Score]
"""Prompt, answer and reference to the verdict: how the pool calls every verifier."""


def find_verifier(name: str) -> Judge:
    """A verifier of `REWARDS`, or a function of your own as `package.module:function`.

    Your own is called with (prompt text, completion text, reference), sync or async, and returns a number, or a dict
    of named parts that add up to the reward and are logged one by one. It must be pure: it runs in other processes.

    Raises:
        ValueError: there is no such verifier; the message lists what is allowed.
    """
    if name in REWARDS:
        verifier = REWARDS[name]
        return lambda prompt, text, reference: verifier(text, reference)
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"no verifier is called {name!r}: use one of {sorted(REWARDS)}, or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"verifier {name!r} cannot be imported: {error}") from error
    return lambda prompt, text, reference: _as_score(found(prompt, text, reference))


def _as_score(value: Any) -> Score:
    """What a custom reward returned, as a score.

    Raises:
        TypeError: it is neither a finite number nor a dict of them.
    """
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    parts = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    numbers: list[Any] = list(parts.values()) if parts else [value]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise TypeError(f"a reward must be a finite number or a dict of them, not {value!r}")
    return Score(reward=float(sum(numbers)), parts={str(k): float(v) for k, v in parts.items()})

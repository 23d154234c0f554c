"""Checks of the section `reward`: names of verifiers, their weights and their settings, told with the nearest name.

Messages show keys and never values: what an environment variable stands for may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.plugins import mistakes
from maxpo.rewards.registry import REWARDS, names_in_use
from maxpo.rewards.verifiers.length import CAP
from maxpo.wording import did_you_mean as nearest

VERIFIERS = (*REWARDS, COMBINED)
"""Verifiers that come with this package."""
REWARD_KEYS = ("reward.verifier", "reward.parts", "reward.args", "reward.by_source", "reward.max_chars")
"""Keys that `reward_problems` reads."""

_ALLOWED = f"one of {', '.join(VERIFIERS)}, or a function of your own as package.module:function."


def reward_problems(reward: RewardConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that are involved and what is wrong, as far as it can be told without importing a function of yours."""
    if not _is_verifier(reward.verifier):
        yield ("reward.verifier",), f"Must be {_ALLOWED}{nearest(reward.verifier, VERIFIERS)}"
        return
    bad_sources = [source for source, name in reward.by_source.items() if not _is_verifier(name)]
    for source in bad_sources:
        hint = nearest(str(reward.by_source[source]), VERIFIERS)
        yield ("reward.by_source",), f"The verifier of {source} must be {_ALLOWED}{hint}"
    for name, weight in reward.parts.items():
        if not _is_verifier(name) or name == COMBINED:
            yield ("reward.parts",), f"There is no verifier {name} to be added up.{nearest(name, REWARDS)}"
        elif isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            yield ("reward.parts",), f"The weight of {name} must be a finite number."
    for name, given in reward.args.items():
        if name in REWARDS:
            yield from ((("reward.args",), text) for text in mistakes(name, REWARDS[name], given))
        elif ":" not in name:
            yield ("reward.args",), f"There is no verifier {name} to be set up.{nearest(name, REWARDS)}"
    if bad_sources:
        return
    combined = COMBINED in (reward.verifier, *reward.by_source.values())
    if combined and not reward.parts:
        yield ("reward.parts", "reward.verifier"), "combined needs weights, such as {math: 1.0, format: 0.2}."
    if reward.parts and not combined:
        yield ("reward.parts", "reward.verifier"), "Weights count with reward.verifier combined only."
    if "length" in names_in_use(reward):
        own = reward.args.get("length")
        cap: object = cast("dict[str, object]", own).get("cap", CAP) if isinstance(own, dict) else CAP
        if isinstance(cap, int) and cap > reward.max_chars:
            message = "The argument cap of length must be at most reward.max_chars: what is longer is not read."
            yield ("reward.args", "reward.max_chars"), message


def _is_verifier(name: object) -> bool:
    return isinstance(name, str) and (name in VERIFIERS or ":" in name)

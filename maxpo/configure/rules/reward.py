"""Checks of the section `reward`: names of verifiers, their weights and their arguments.

Messages show keys and never values, because the value of an environment variable may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.configure.rules import Fault
from maxpo.plugins import FUNCTION, is_address, mistakes
from maxpo.rewards.registry import REWARDS, names_in_use
from maxpo.rewards.verifiers.length import CAP
from maxpo.wording import did_you_mean

VERIFIERS = (*REWARDS, COMBINED)
"""Verifiers that come with this package."""
REWARD_KEYS = (
    "reward.verifier",
    "reward.parts",
    "reward.args",
    "reward.by_source",
    "reward.max_chars",
    "rollout.max_new_tokens",
)
"""Keys that `reward_problems` reads."""

_ALLOWED = f"one of {', '.join(VERIFIERS)}, or {FUNCTION}."


def reward_problems(reward: RewardConfig, max_new_tokens: int) -> Iterator[Fault]:
    """Yield the problems that can be found without an import of the user's own function."""
    if not _is_verifier(reward.verifier):
        yield ("reward.verifier",), f"Must be {_ALLOWED}{did_you_mean(reward.verifier, VERIFIERS)}"
        return
    wrong_sources = list(_source_problems(reward.by_source))
    yield from wrong_sources
    yield from _part_problems(reward.parts)
    yield from _argument_problems(reward.args)
    if not wrong_sources:
        yield from _combined_problems(reward)
        yield from _length_problems(reward, max_new_tokens)


def _source_problems(by_source: Mapping[str, object]) -> Iterator[Fault]:
    for source, name in by_source.items():
        if not _is_verifier(name):
            hint = did_you_mean(str(name), VERIFIERS)
            yield ("reward.by_source",), f"The verifier of {source} must be {_ALLOWED}{hint}"


def _part_problems(parts: Mapping[str, object]) -> Iterator[Fault]:
    for name, weight in parts.items():
        if not _is_verifier(name) or name == COMBINED:
            yield ("reward.parts",), f"There is no verifier {name} to be added up.{did_you_mean(name, REWARDS)}"
        elif isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            yield ("reward.parts",), f"The weight of {name} must be a finite number."


def _argument_problems(args: Mapping[str, object]) -> Iterator[Fault]:
    for name, given in args.items():
        if name in REWARDS:
            yield from ((("reward.args",), text) for text in mistakes(name, REWARDS[name], given))
        elif not is_address(name):
            yield ("reward.args",), f"There is no verifier {name} to be set up.{did_you_mean(name, REWARDS)}"


def _combined_problems(reward: RewardConfig) -> Iterator[Fault]:
    combined = COMBINED in (reward.verifier, *reward.by_source.values())
    if combined and not reward.parts:
        yield ("reward.parts", "reward.verifier"), "combined needs weights, such as {math: 1.0, format: 0.2}."
    if reward.parts and not combined:
        yield ("reward.parts", "reward.verifier"), "Weights are used with reward.verifier combined only."


def _length_problems(reward: RewardConfig, max_new_tokens: int) -> Iterator[Fault]:
    if "length" in names_in_use(reward):
        own = reward.args.get("length")
        cap: object = cast("dict[str, object]", own).get("cap", CAP) if isinstance(own, dict) else CAP
        if isinstance(cap, int) and cap > (longest := reward.longest(max_new_tokens)):
            message = f"The argument cap of length must be at most {longest}: longer answers are not read."
            yield ("reward.args", "reward.max_chars"), message


def _is_verifier(name: object) -> bool:
    return isinstance(name, str) and (name in VERIFIERS or is_address(name))

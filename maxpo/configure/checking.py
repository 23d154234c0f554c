"""Checks of a run's settings: ranges of single values and combinations that make no sense.

Pure Python, so that a mistake is reported in a moment and on any machine. Checks never edit a value.
Whether the machines have what the settings ask for is checked elsewhere, once a cluster is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import MISSING

from maxpo.config import Config
from maxpo.configure.fields import get, schema
from maxpo.configure.problems import DEFAULT, Problem, Setting, show
from maxpo.configure.rules.data import source_problems
from maxpo.configure.rules.environment import (
    ENVIRONMENT_KEYS,
    environment_problems,
)
from maxpo.configure.rules.general import COMBINATIONS, FILES, RANGES
from maxpo.configure.rules.reward import REWARD_KEYS, reward_problems


def _holds(holds: Callable[[Any], bool], value: object) -> bool:
    """Whether it does; an escaped interpolation may have left a value of another type."""
    try:
        return holds(value)
    except TypeError:
        return False


def check(config: Config, origin: Mapping[str, Setting], *, files_here: bool = True) -> list[Problem]:
    """Finds values out of range and combinations that make no sense.

    A key whose value is MISSING, or was found wrong by itself, is left out of what follows: what is said of it once is
    not said again in other words.

    Args:
        config: Typed settings; a key whose value is not known holds MISSING.
        origin: Where each key was set last; a key that is not there has its default.
        files_here: Whether the files that are named are on this machine, and can be looked at.
    """
    problems: list[Problem] = []
    keys = list(schema())
    unusable = {key for key in keys if get(config, key) == MISSING}

    def setting(key: str) -> Setting:
        value = get(config, key)
        return origin.get(key) or Setting(key=key, where=DEFAULT, text=show(value), value=value)

    def report(involved: tuple[str, ...], message: str) -> None:
        problems.append(Problem(settings=tuple(map(setting, involved)), message=message))
        if len(involved) == 1:
            unusable.add(involved[0])

    for key in keys:
        value = get(config, key)
        # Strings are cut into characters here, which are no floats either.
        numbers: list[object] = list(value) if isinstance(value, Iterable) else [value]  # pyright: ignore
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            report((key,), "Must be a finite number.")
    for key, holds, message in RANGES:
        if key in FILES and not files_here:
            continue
        if key not in unusable and get(config, key) is not None and not _holds(holds, get(config, key)):
            report((key,), message)
    for key in sorted({"data.train", "data.eval"} - unusable):
        for message in source_problems(get(config, key), files_here=files_here):
            report((key,), message)
    for involved, holds, message in COMBINATIONS:
        if unusable.isdisjoint(involved) and not holds(config):
            report(involved, message)
    found: list[tuple[tuple[str, ...], str]] = []
    if unusable.isdisjoint(REWARD_KEYS):
        found += reward_problems(config.reward)
    if unusable.isdisjoint({*ENVIRONMENT_KEYS, *REWARD_KEYS}):
        found += environment_problems(config.environment, config.reward)
    for involved, message in found:
        report(involved, message)
    return problems

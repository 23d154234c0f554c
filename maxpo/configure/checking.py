"""Checks of all settings of a run: ranges of single values, and combinations that make no sense.

The checks are pure Python, so that a mistake is reported at once and on any machine. Checks never change a value. Other
code checks the resources of the machines once a cluster is running.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from omegaconf import MISSING

from maxpo.config import Config
from maxpo.configure.fields import get, schema
from maxpo.configure.problems import DEFAULT, Problem, Setting, show
from maxpo.configure.rules import Fault
from maxpo.configure.rules.data import source_problems
from maxpo.configure.rules.environment import ENVIRONMENT_KEYS, environment_problems
from maxpo.configure.rules.general import COMBINATIONS, ranges_of
from maxpo.configure.rules.metrics import METRIC_KEYS, metric_problems
from maxpo.configure.rules.reward import REWARD_KEYS, reward_problems


def check(config: Config, origin: Mapping[str, Setting], *, files_here: bool = True) -> list[Problem]:
    """Return all values out of range and all combinations that make no sense.

    A key whose value is MISSING or already reported takes no part in later checks, so that one mistake is reported
    once.

    Args:
        config: Typed settings. A key whose value is unknown holds MISSING.
        origin: Last setting of each key. A key that is absent has its default.
        files_here: True if the named files are on this machine and can be checked.
    """
    checks = _Checks(config, origin)
    checks.numbers()
    checks.ranges(files_here=files_here)
    checks.sources(files_here=files_here)
    checks.combinations()
    checks.plugins()
    return checks.problems


class _Checks:
    """The checks of one config. Each method appends to `problems`."""

    def __init__(self, config: Config, origin: Mapping[str, Setting]) -> None:
        self._config, self._origin = config, origin
        self._unusable = {key for key in schema() if get(config, key) == MISSING}
        self.problems: list[Problem] = []

    def numbers(self) -> None:
        """Report numbers that are not finite, in lists too."""
        for key in schema():
            if not _is_finite(get(self._config, key)):
                self._report((key,), "Must be a finite number.")

    def ranges(self, *, files_here: bool) -> None:
        """Report values outside the range of their key, each with the first condition that fails."""
        for key in schema():
            for must in ranges_of(key, files_here=files_here):
                if key not in self._unusable and not must.accepts(get(self._config, key)):
                    self._report((key,), must.message)

    def sources(self, *, files_here: bool) -> None:
        """Report wrong entries of `data.train` and `data.eval`."""
        for key in sorted({"data.train", "data.eval"} - self._unusable):
            for message in source_problems(get(self._config, key), files_here=files_here):
                self._report((key,), message)

    def combinations(self) -> None:
        """Report values that do not fit together."""
        for involved, holds, message in COMBINATIONS:
            if self._unusable.isdisjoint(involved) and not holds(self._config):
                self._report(involved, message)

    def plugins(self) -> None:
        """Report wrong verifiers, environments, arguments of these, and a metric that the run does not have."""
        config, faults = self._config, list[Fault]()
        if self._unusable.isdisjoint(REWARD_KEYS):
            faults += reward_problems(config.reward, config.rollout.max_new_tokens)
        if self._unusable.isdisjoint({*ENVIRONMENT_KEYS, *REWARD_KEYS}):
            faults += environment_problems(config.environment, config.reward)
        if self._unusable.isdisjoint(METRIC_KEYS):
            faults += metric_problems(config)
        for involved, message in faults:
            self._report(involved, message)

    def _report(self, involved: tuple[str, ...], message: str) -> None:
        self.problems.append(Problem(settings=tuple(map(self._setting, involved)), message=message))
        if len(involved) == 1:
            self._unusable.add(involved[0])

    def _setting(self, key: str) -> Setting:
        value = get(self._config, key)
        return self._origin.get(key) or Setting(key=key, where=DEFAULT, text=show(value), value=value)


def _is_finite(value: object) -> bool:
    """Return True unless the value, or an item of it, is a float that is not finite."""
    items: Iterable[object] = value if isinstance(value, Iterable) else [value]  # pyright: ignore
    return all(math.isfinite(item) for item in items if isinstance(item, float))

"""What is wrong with settings, and where each was written."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

from omegaconf import MISSING

from maxpo.errors import InputError
from maxpo.wording import question

DEFAULT = "default"
"""Where a value comes from that nobody set."""


def show(value: object) -> str:
    """Writes a value as YAML on one line: JSON has the same true, false and null, and tells "8" from 8."""
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value and where it was written."""

    key: str
    """Dotted key such as `algorithm.k`; empty when a problem is about a whole file."""
    where: str
    """`file:line`, `command line` or `default`."""
    text: str = ""
    """The value as it was written, interpolations included; empty when there is none to show."""
    value: object = MISSING
    """The value that is set, interpolations unresolved."""

    def __str__(self) -> str:
        short = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return f"{self.key}{' = ' * bool(short)}{short}   ({self.where})" if self.key else self.where


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with the settings."""

    settings: tuple[Setting, ...]
    """The values involved, at least one."""
    message: str
    """What is wrong, or what is allowed."""
    nearest: tuple[str, ...] = ()
    """Keys that may have been meant, best first."""

    @property
    def key(self) -> str:
        """Key of the first value involved."""
        return self.settings[0].key

    def __str__(self) -> str:
        text = textwrap.fill(self.message + question(self.nearest), 90, break_long_words=False, break_on_hyphens=False)
        return "\n".join(["  " + str(setting) for setting in self.settings] + [textwrap.indent(text, "      ")])


def problem(message: str, *, where: str, key: str = "", text: str = "", nearest: tuple[str, ...] = ()) -> Problem:
    """Return a problem of one key, or without `key` of a file."""
    return Problem(settings=(Setting(key=key, where=where, text=text),), message=message, nearest=nearest)


class ConfigError(InputError):
    """All problems of the settings of a run. `str` gives the text for the user."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n\n".join([f"{count} in the settings, nothing was started:", *map(str, self.problems)])

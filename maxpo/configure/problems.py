"""Problems of settings, each with the place where the value was written."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

from omegaconf import MISSING

from maxpo.errors import InputError
from maxpo.wording import question, shown

DEFAULT = "default"
"""Place of a value that nobody set."""


def show(value: object) -> str:
    """Return a value as YAML on one line. JSON has the same true, false and null, and distinguishes "8" and 8."""
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value and the place where it was written."""

    key: str
    """Dotted key such as `algorithm.k`. Empty if a problem concerns a file."""
    where: str
    """`file:line`, `command line` or `default`."""
    text: str = ""
    """Value as written, with interpolations. Empty if there is no value to show."""
    value: object = MISSING
    """Value that is set, with interpolations unresolved."""

    def __str__(self) -> str:
        text, where = shown(self.text), shown(self.where, 1000)
        return f"{shown(self.key)}{' = ' * bool(text)}{text}   ({where})" if self.key else where


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in the settings."""

    settings: tuple[Setting, ...]
    """Values involved, at least one."""
    message: str
    """Description of the mistake, or of the allowed values."""
    nearest: tuple[str, ...] = ()
    """Keys that may have been meant, best first."""

    @property
    def key(self) -> str:
        """Key of the first value involved."""
        return self.settings[0].key

    def __str__(self) -> str:
        text = textwrap.fill(
            shown(" ".join(self.message.split()), 2000) + question(self.nearest),
            90,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(["  " + str(setting) for setting in self.settings] + [textwrap.indent(text, "      ")])


def problem(message: str, *, where: str, key: str = "", text: str = "", nearest: tuple[str, ...] = ()) -> Problem:
    """Return a problem of one key, or of a file if `key` is empty."""
    return Problem(settings=(Setting(key=key, where=where, text=text),), message=message, nearest=nearest)


class ConfigError(InputError):
    """All problems in the settings of a run. `str` returns the text for the user."""

    def __init__(self, problems: list[Problem], loaded: object = None) -> None:
        """Keep the problems.

        Args:
            problems: At least one.
            loaded: `LoadedConfig` with the values that could be read, for checks of other things. None: the problem is
                a file.
        """
        super().__init__(problems)
        self.problems, self.loaded = problems, loaded

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n\n".join([f"{count} in the settings, nothing was started:", *map(str, self.problems)])

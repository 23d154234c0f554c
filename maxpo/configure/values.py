"""Checks of values against the types of their keys, and against what files and paths can hold."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Literal, cast, get_args, get_origin

from maxpo.configure.fields import schema
from maxpo.configure.rules.general import allowed
from maxpo.wording import parts

BIGGEST = 2**63 - 1
"""Largest whole number that other programs can read."""


def wrong_value(value: object, key: str) -> str | None:
    """Return the mistake in a value that has not the type of its key, or that no file can hold. None if there is none.

    OmegaConf does not check the items of a list within a list, nor text that stands for a list or a mapping.
    """
    if not any(_fits(value, part) for part in parts(schema()[key].type)):
        return f"Must be {allowed(key)}."
    return next(_unwritable(value), None)


def _fits(value: object, hint: object) -> bool:
    """Return True if a value, with its items, has the type of a hint."""
    match get_origin(hint) or hint:
        case builtins.list:
            inner = get_args(hint)[0]
            return isinstance(value, list) and all(_fits(item, inner) for item in cast("list[object]", value))
        case builtins.dict:
            return isinstance(value, dict) and all(
                isinstance(name, str) for name in cast("dict[object, object]", value)
            )
        case builtins.float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case builtins.int:
            return isinstance(value, int) and not isinstance(value, bool)
        case known if known is Literal:
            return value in get_args(hint)
        case known:
            return isinstance(known, type) and isinstance(value, known)


def _unwritable(value: object) -> Iterator[str]:
    """Yield a message for each part of a value that has no place in a file of settings or in a path."""
    match value:
        case str(text):
            if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
                yield "Text must not have NUL characters, nor half of a pair of surrogates (\\ud800 to \\udfff)."
        case None | bool() | float():
            return
        case int(number):
            if not -BIGGEST <= number <= BIGGEST:
                yield "A whole number must be at least -2**63 and below 2**63."
        case list():
            for item in cast("list[object]", value):
                yield from _unwritable(item)
        case dict():
            for name, item in cast("dict[object, object]", value).items():
                yield from _unwritable(name)
                yield from _unwritable(item)
        case _:
            yield "Must hold text, numbers, true, false, null, lists and mappings only."

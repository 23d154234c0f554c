"""Type hints and near misses in words, for messages."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable
from typing import Literal, Union, get_args, get_origin

_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}

_LONGEST_KEY = 100


def parts(hint: object) -> tuple[object, ...]:
    """Return the members of a union, or `hint` itself if it is another type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: object) -> str:
    """Return the values that a type allows, in words."""
    return " or ".join(map(_describe_one, parts(hint)))


def _describe_one(hint: object) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(get_args(hint))
    if origin is dict:
        return "a mapping, such as {name: value}"
    if origin is list:
        inner = get_args(hint)[0]
        if get_origin(inner) is dict:
            return "a list of mappings, such as [{name: value}]"
        return "a list of text" if inner is str else f"a list of {describe(inner)[2:]}s, such as [1, 2]"
    return _NAMES.get(hint, str(hint))


def shown(text: str, limit: int = 80) -> str:
    """Return a text on one line for a message: cut to `limit` characters, with escapes for what cannot be printed."""
    short = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def plain(text: str) -> str:
    """Return a text without the codes that colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def reason(text: str, limit: int = 400) -> str:
    """Return what an error says: the end of a traceback, or the beginning of any other text, on one line.

    Args:
        text: Text of the error. A text that begins with or holds a traceback says its reason after the last stack.
        limit: Number of characters.
    """
    lines = plain(text).strip().splitlines()
    stack = [i for i, line in enumerate(lines) if line.startswith("  ")]
    if stack and any(line.startswith("Traceback ") or line.startswith("ray::") for line in lines):
        lines = lines[stack[-1] + 1 :] or lines[-1:]
    return shown(" ".join(" ".join(lines).split()), limit)


def listed(names: Iterable[object], most: int = 12) -> str:
    """Return names for a message: the first ones, each cut to 40 characters, and the number of the others."""
    known = [shown(str(name), 40) for name in names]
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def nearest(key: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return at most three known keys that are most like `key`, best first.

    Keys are compared in full and by their last name, so a wrong or forgotten section does not matter much. Nothing is
    like a very long key, which would take long to compare.
    """
    if len(key) > _LONGEST_KEY:
        return ()

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def alike(name: str) -> float:
        return max(ratio(key, name), 0.95 * ratio(key.rpartition(".")[2], name.rpartition(".")[2]))

    score = {name: alike(name) for name in known}
    least = max(0.7, max(score.values(), default=0.0) - 0.05)
    ranked = sorted((name for name in score if score[name] >= least), key=lambda name: -score[name])
    return tuple(ranked[:3])


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known keys, to be put after a message. Empty if no key is near."""
    return question(nearest(key, known))


def question(keys: Iterable[str]) -> str:
    """Return " Did you mean ...?", or nothing without keys."""
    names = " or ".join(keys)
    return f" Did you mean {names}?" if names else ""

"""Type hints and near misses in words, for messages."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Literal, Union, get_args, get_origin


def parts(hint: object) -> tuple[object, ...]:
    """Return the members of a union, or the type itself as the only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: object) -> str:
    """Describe the values of a type in words."""
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    words: list[str] = []
    for part in parts(hint):
        if get_origin(part) is Literal:
            words.append("one of " + ", ".join(get_args(part)))
        elif get_origin(part) is list:
            inner = get_args(part)[0]
            if get_origin(inner) is dict:
                words.append("a list of mappings, such as [{name: value}]")
            else:
                words.append("a list of text" if inner is str else f"a list of {describe(inner)[2:]}s, such as [1, 2]")
        else:
            words.append("a mapping, such as {name: value}" if get_origin(part) is dict else names[part])
    return " or ".join(words)


def nearest(key: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three known keys most similar to `key`, best first.

    Full keys are compared, and last names: the section may be wrong or missing.
    """

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def alike(name: str) -> float:
        return max(ratio(key, name), 0.95 * ratio(key.rpartition(".")[2], name.rpartition(".")[2]))

    score = {name: alike(name) for name in known}
    least = max(0.7, max(score.values()) - 0.05)
    ranked = sorted((name for name in score if score[name] >= least), key=lambda name: -score[name])
    return tuple(ranked[:3])

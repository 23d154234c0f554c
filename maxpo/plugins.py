"""Checks of `reward.args` and `environment.args`: which arguments there are, and what they may be."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin

PASSED = 3
"""Arguments that a function of your own is called with: prompt, text and reference."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names what may have been meant, to be put after a message; empty where nothing is alike."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


RULES: Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "numeric": (lambda a: 0 <= a["tolerance"] < 1, "tolerance must be at least 0 and below 1"),
    "math": (lambda a: 1 <= a["longest"] <= 2000, "longest must be 1 to 2000"),
    "length": (lambda a: 0 <= a["start"] < a["cap"], "start must be at least 0 and below cap"),
    "format": (
        lambda a: bool(a["closing"]) and a["opening"] != a["closing"],
        "closing must not be empty, and not the same as opening",
    ),
    "calculator": (
        lambda a: a["opening"] and a["closing"] and a["opening"] != a["closing"] and "{value}" in a["reply"],
        "opening and closing must be two texts, neither empty, and reply must have {value} where the result goes",
    ),
    "regex": (lambda a: a["pattern"] is None or _compiles(a["pattern"]), "pattern must be one of Python's re"),
}
"""What must hold for all arguments of a verifier or an environment together, and what is said otherwise."""


def mistakes(name: str, function: Callable[..., Any], given: object) -> list[str]:
    """What is wrong with the arguments of a verifier or an environment. Values are not shown: they may be secrets.

    Args:
        name: As in `REWARDS` or `ENVIRONMENTS`, or `package.module:function`.
        function: The verifier, whose arguments after those it is always called with are settings, or the class of the
            environment.
        given: Name to value, as the user wrote it.
    """
    if not isinstance(given, Mapping):
        return [f"{name} takes a mapping of arguments, such as {{name: value}}."]
    arguments = cast("Mapping[str, Any]", given)
    own = ":" in name
    settings: dict[str, inspect.Parameter] = {}
    for position, (key, parameter) in enumerate(inspect.signature(function, eval_str=not own).parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            return []
        if parameter.kind is parameter.KEYWORD_ONLY or (own and position >= PASSED):
            settings[key] = parameter
    found: list[str] = []
    for key, value in arguments.items():
        if key not in settings:
            known = f"it has {', '.join(settings)}" if settings else "it has none"
            found.append(f"{name} has no argument {key}: {known}.{nearest(key, settings)}")
        elif not own and not _fits(value, settings[key].annotation):
            found.append(f"{name}: {key} must be {_describe(settings[key].annotation)}.")
    if found or name not in RULES:
        return found
    holds, message = RULES[name]
    whole = {key: parameter.default for key, parameter in settings.items()} | dict(arguments)
    return [] if holds(whole) else [f"{name}: {message}."]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    return any(_is(value, member) for member in _members(hint))


def _is(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return " or ".join(
        "one of " + ", ".join(get_args(member)) if get_origin(member) is Literal else names.get(member, str(member))
        for member in _members(hint)
    )

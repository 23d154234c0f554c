"""Verifiers and environments by name, of MaxPO or of users, and checks of their arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from maxpo.wording import describe, did_you_mean, parts

T = TypeVar("T")

PASSED = 3
"""Number of positional arguments of a user's verifier: prompt, text and reference."""


FUNCTION = "a function of your own as package.module:function or file.py:function"
"""Form of the address of a function, for messages."""


def is_address(name: str) -> bool:
    """Return True if the text has the form `package.module:name` or `file.py:name`."""
    module, _, attribute = name.rpartition(":")
    return attribute.isidentifier() and (_is_file(module) or all(part.isidentifier() for part in module.split(".")))


def is_function(entry: object) -> bool:
    """Return True if an object can be called and is no class."""
    return callable(entry) and not inspect.isclass(entry)


def file_of(name: str) -> Path | None:
    """Return the file of an address `file.py:name`, None for any other text."""
    module, _, attribute = name.rpartition(":")
    return Path(module) if attribute.isidentifier() and _is_file(module) else None


def with_absolute_file(name: str) -> str:
    """Return an address with the absolute path of its file. Any other text stays as it is."""
    file = file_of(name)
    return name if file is None else f"{file.absolute()}:{name.rpartition(':')[2]}"


def short_name(name: str) -> str:
    """Return the name of a function without its module, for names of metrics. Other names stay as they are."""
    return name.rpartition(":")[2]


def _is_file(module: str) -> bool:
    return module.endswith(".py") and len(module) > len(".py")


def _import(module: str) -> ModuleType:
    """Import a module by its name or file. A file is imported once, whatever its name is called elsewhere."""
    if not _is_file(module):
        return importlib.import_module(module)
    path = Path(module).absolute()
    name = f"maxpo_own_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def find(
    name: str,
    registry: Mapping[str, T],
    kind: str,
    *,
    form: str,
    fits: Callable[[object], bool],
    needed: str,
    others: Sequence[str] = (),
) -> T:
    """Return the entry of a registry, or import `package.module:name` or `file.py:name`.

    Args:
        name: Name in the registry, or address of an object in a user's module.
        registry: Name -> entry.
        kind: Kind of the entries, for messages, such as "verifier".
        form: Form of an address, for messages.
        fits: Returns True if an imported object can be an entry.
        needed: Description of such an object, for messages.
        others: Further names for the message, which the caller handles itself.

    Raises:
        ValueError: The name is unknown, the import fails, or the object does not fit.
    """
    if name in registry:
        return registry[name]
    if not is_address(name):
        raise ValueError(f"no {kind} is called {name!r}: use one of {sorted([*registry, *others])}, or {form}")
    module, _, attribute = name.rpartition(":")
    try:
        entry: T = getattr(_import(module), attribute)
    # A user's module may raise anything, and may end the process.
    except (Exception, SystemExit) as error:
        raise ValueError(f"{kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not fits(entry):
        raise ValueError(f"{kind} {name!r} is not {needed}")
    return entry


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


RULES: Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "numeric": (
        lambda a: a["tolerance"] is None or 0 <= a["tolerance"] < 1,
        "tolerance must be at least 0 and below 1, or null",
    ),
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
"""Condition that all arguments of a verifier or an environment must meet together, and the message otherwise."""


def mistakes(name: str, function: Callable[..., object], given: object) -> list[str]:
    """Return messages about wrong arguments of a verifier or an environment.

    The messages do not show values, which may be secrets.

    Args:
        name: Name in `REWARDS` or `ENVIRONMENTS`, or `package.module:function`.
        function: Verifier, whose arguments after the positional ones are settings, or class of the environment.
        given: Name -> value, as the user wrote them.
    """
    if not isinstance(given, Mapping):
        return [f"{name} takes a mapping of arguments, such as {{name: value}}."]
    arguments = cast("Mapping[str, object]", given)
    own = ":" in name
    settings = _settings(function, own)
    if settings is None:
        return []
    messages: list[str] = []
    for key, value in arguments.items():
        if key not in settings:
            known = f"it has {', '.join(settings)}" if settings else "it has none"
            messages.append(f"{name} has no argument {key}: {known}.{did_you_mean(key, settings)}")
        elif not own and not _fits(value, settings[key].annotation):
            messages.append(f"{name}: {key} must be {describe(settings[key].annotation)}.")
    if messages or name not in RULES:
        return messages
    holds, message = RULES[name]
    values = {key: parameter.default for key, parameter in settings.items()} | dict(arguments)
    return [] if holds(values) else [f"{name}: {message}."]


def _settings(function: Callable[..., object], own: bool) -> dict[str, inspect.Parameter] | None:
    """Return the parameters of a function that are settings. None: any argument is allowed.

    Args:
        function: Verifier or class.
        own: True for a function of a user, whose settings may be positional too.
    """
    settings: dict[str, inspect.Parameter] = {}
    for position, (key, parameter) in enumerate(inspect.signature(function, eval_str=not own).parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            return None
        if parameter.kind is parameter.KEYWORD_ONLY or (own and position >= PASSED):
            settings[key] = parameter
    return settings


def _fits(value: object, hint: object) -> bool:
    """Return True if a value has the type of a hint."""
    return any(_is(value, member) for member in parts(hint))


def _is(value: object, hint: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)

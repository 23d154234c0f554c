"""All environments by name."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from maxpo.environments import calculator
from maxpo.environments.base import Environment
from maxpo.plugins import mistakes

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"calculator": calculator.Calculator}


def find_environment(name: str, args: Mapping[str, Any]) -> Callable[[], Environment]:
    """A constructor of an environment of `ENVIRONMENTS`, or of a class of your own as `package.module:Class`.

    Raises:
        ValueError: There is no such environment, or it does not take these settings, or needs others.
    """
    cls = ENVIRONMENTS[name] if name in ENVIRONMENTS else _own(name)
    if wrong := mistakes(name, cls, args):
        raise ValueError(" ".join(wrong))
    try:
        inspect.signature(cls).bind(**args)
    except TypeError as error:
        raise ValueError(f"{name}: environment.args: {error}") from error
    return functools.partial(cls, **args)


def _own(name: str) -> Callable[..., Environment]:
    module, separator, cls = name.partition(":")
    if not separator:
        raise ValueError(
            f"no environment is called {name!r}: use one of {sorted(ENVIRONMENTS)}, or package.module:Class"
        )
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"environment {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and hasattr(found, "reset") and hasattr(found, "step")):
        raise ValueError(f"environment {name!r} is no class with the methods reset and step")
    return found

"""All environments by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

from maxpo.environments import calculator
from maxpo.environments.base import Environment
from maxpo.plugins import find, mistakes

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"calculator": calculator.Calculator}


def find_environment(name: str, args: Mapping[str, object]) -> Callable[[], Environment]:
    """Return a constructor of an environment of `ENVIRONMENTS`, or of a user's class as `package.module:Class`.

    Raises:
        ValueError: The environment does not exist, does not take these arguments, or needs others.
    """
    cls = find(
        name,
        ENVIRONMENTS,
        "environment",
        form="package.module:Class",
        fits=lambda entry: isinstance(entry, type) and hasattr(entry, "reset") and hasattr(entry, "step"),
        needed="a class with the methods reset and step",
    )
    if wrong := mistakes(name, cls, args):
        raise ValueError(" ".join(wrong))
    try:
        inspect.signature(cls).bind(**args)
    except TypeError as error:
        raise ValueError(f"{name}: environment.args: {error}") from error
    return functools.partial(cls, **args)

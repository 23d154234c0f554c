"""Type, range, default and docstring of every setting, read from the dataclasses in `maxpo/config/`."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import sys
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from maxpo.config import Config
from maxpo.config.ranges import Must


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key."""

    type: object
    """Type hint without its ranges."""
    ranges: tuple[Must, ...]
    """Conditions that are written beside the field."""
    default: object
    """Default value. MISSING if the key must be set."""
    doc: str


def get(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    return operator.attrgetter(key)(config)


def leaf_of(key: str) -> str:
    """Return the setting that holds `key`: `data.task_args` for `data.task_args.digits`."""
    names = key.split(".")
    return ".".join(names[: 3 if ".".join(names[:2]) in sections() else 2])


@functools.cache
def sections() -> dict[str, type[Any]]:
    """Return the dataclass of each section. A section within a section comes after the outer one."""
    classes: dict[str, type[Any]] = {}
    for name, cls in get_type_hints(Config).items():
        classes[name] = cls
        for inner, hint in get_type_hints(cls).items():
            if isinstance(hint, type) and is_dataclass(hint):
                classes[f"{name}.{inner}"] = hint
    return classes


def _docstrings() -> dict[tuple[str, str], str]:
    """Return the string below each field, by class and field. Python does not keep it, so the source is parsed."""
    docs: dict[tuple[str, str], str] = {}
    modules = {cls.__module__: sys.modules[cls.__module__] for cls in sections().values()}
    for node in (node for module in modules.values() for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                        docs[node.name, name] = inspect.cleandoc(doc)
                    case _:
                        pass
    return docs


def _split(hint: object) -> tuple[object, tuple[Must, ...]]:
    """Return the plain type of a hint, and the ranges that the hint carries."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    plain, *extras = get_args(hint)
    return plain, tuple(extra for extra in extras if isinstance(extra, Must))


@functools.cache
def schema() -> dict[str, Field]:
    """Return all dotted keys and their fields, in the order of `Config`."""
    docs, defaults = _docstrings(), Config()
    keys: dict[str, Field] = {}
    for section, cls in sections().items():
        for name, hint in get_type_hints(cls, include_extras=True).items():
            key = f"{section}.{name}"
            if key not in sections():
                plain, ranges = _split(hint)
                doc = docs.get((cls.__name__, name), "")
                keys[key] = Field(type=plain, ranges=ranges, default=get(defaults, key), doc=doc)
    return keys

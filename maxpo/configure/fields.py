"""Everything that `maxpo/config/` says of each key: type, default and docstring."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import sys
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from maxpo.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Type, default and docstring of one key."""

    type: Any
    default: object
    """MISSING when it must be set."""
    doc: str


def get(config: Config, key: str) -> Any:
    """Reads a dotted key."""
    return operator.attrgetter(key)(config)


def leaf_of(key: str) -> str:
    """Cuts a key below a mapping, such as `data.task_args.digits`, to the mapping's own."""
    names = key.split(".")
    return ".".join(names[: 3 if ".".join(names[:2]) in sections() else 2])


@functools.cache
def sections() -> dict[str, type[Any]]:
    """Lists the sections of a config and their dataclasses; a section within a section comes after it."""
    found: dict[str, type[Any]] = {}
    for name, cls in get_type_hints(Config).items():
        found[name] = cls
        for inner, hint in get_type_hints(cls).items():
            if isinstance(hint, type) and is_dataclass(hint):
                found[f"{name}.{inner}"] = hint
    return found


def _docstrings() -> dict[tuple[str, str], str]:
    """Reads the string below each field from the source, by class and field: Python does not keep it."""
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


@functools.cache
def schema() -> dict[str, Field]:
    """Maps every dotted key to its type, default and docstring, in the order of `Config`."""
    docs, whole = _docstrings(), Config()
    found: dict[str, Field] = {}
    for section, cls in sections().items():
        hints = get_type_hints(cls)
        for field in fields(cls):
            key = f"{section}.{field.name}"
            if key in sections():
                continue
            doc = docs.get((cls.__name__, field.name), "")
            found[key] = Field(type=hints[field.name], default=get(whole, key), doc=doc)
    return found

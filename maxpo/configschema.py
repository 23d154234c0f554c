"""What `config.py` says about every key: type, default, docstring, and which key is most like a wrong one."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import operator
import types
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from maxpo import config, configcluster, configdata, configenvironment, configlora, configreward
from maxpo.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What `config.py` says about one key."""

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
    modules = (config, configcluster, configdata, configenvironment, configlora, configreward)
    for node in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
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
    """Maps every dotted key to its type, default and docstring, in the order of `config.py`."""
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


def parts(hint: Any) -> tuple[Any, ...]:
    """Lists the members of a union, or the one type that `hint` is."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: Any) -> str:
    """Says in words what values a type allows."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
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


def nearest(key: str) -> tuple[str, ...]:
    """Finds the keys and sections most like `key`, as a whole or by last name (a wrong or forgotten section)."""

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def alike(known: str) -> float:
        return max(ratio(key, known), 0.95 * ratio(key.rpartition(".")[2], known.rpartition(".")[2]))

    score = {known: alike(known) for known in (*sections(), *schema())}
    least = max(0.7, max(score.values()) - 0.05)
    ranked = sorted((known for known in score if score[known] >= least), key=lambda known: -score[known])
    return tuple(ranked[:3])

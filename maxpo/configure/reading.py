"""Single settings from YAML files and from the command line, each with the place where it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_origin

import yaml

from maxpo.configure.fields import leaf_of, schema, sections
from maxpo.configure.problems import Problem, Setting, problem
from maxpo.wording import describe, nearest, parts

COMMAND_LINE = "command line"
REMOVED: Mapping[str, tuple[str | None, str]] = {
    "rollout.start_timeout_s": ("run.start_timeout_s", "Use run.start_timeout_s."),
    "learner.start_timeout_s": ("run.start_timeout_s", "Use run.start_timeout_s."),
    "rollout.health_interval_s": (None, "It is a sixth of rollout.health_timeout_s."),
    "rollout.health_grace_s": (None, "It equals rollout.health_timeout_s."),
    "rollout.top_p": (None, "Sampling is always from the full distribution."),
    "rollout.top_k": (None, "Sampling is always from the full distribution."),
}
"""For each removed setting, the setting that has the value now, if any, and a sentence for the error."""
DEEPEST = 20
"""Deepest nesting of lists and mappings in a file or a value. Libraries that read and write values use recursion."""
_untyped = cast(Any, yaml)  # for functions that PyYAML's stubs leave without types

_OPENING = (
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def unknown_key(key: str, where: str, text: str = "") -> Problem:
    """Return the problem of a key that does not exist, with the nearest keys or else all keys of the section."""
    if key in REMOVED:
        return problem(f"There is no such key any more. {REMOVED[key][1]}", key=key, where=where, text=text)
    section = key.partition(".")[0]
    known = [k for k in schema() if k.startswith(section + ".")] or list(sections())
    near = nearest(key, (*sections(), *schema()))
    message = "There is no such key." if near else f"There is no such key. There are: {', '.join(known)}."
    return problem(message, key=key, where=where, text=text, nearest=near)


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.2's core schema: 1e-6 is a number; yes, 1:30 and 2024-01-01 are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own class attribute, emptied of YAML 1.1's rules)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    cast(Any, _Loader).add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _compose(text: str) -> yaml.Node | None:
    """Parse YAML into nodes, which have line numbers; return None for an empty document."""
    depth = 0
    for token in _untyped.scan(text):
        reason = ""
        if isinstance(token, yaml.AliasToken):
            # A referenced value has no line of its own, and may contain itself.
            reason = "references (*name) are not supported, use `base:`"
        elif isinstance(token, _OPENING):
            depth += 1
            reason = f"more than {DEEPEST} levels of nesting" if depth > DEEPEST else ""
        elif isinstance(token, _CLOSING):
            depth -= 1
        if reason:
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=token.start_mark)
    return _untyped.compose(text, Loader=_Loader)


def _source(node: yaml.Node) -> str:
    """Return the text of a value as written, on one line."""
    start, end = node.start_mark, node.end_mark
    return " ".join((start.buffer or "")[start.pointer : end.pointer].split())


def _value(node: yaml.Node, hint: Any) -> object:
    """Return the value of a node. Text stays as written, so the name 007 is not the number 7.

    Raises:
        ValueError: The node is not a value of its tag. PyYAML raises many kinds of errors for such nodes.
    """
    text = any(part is str or get_origin(part) is Literal for part in parts(hint))
    if text and isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null"):
        return node.value
    try:
        return cast(Any, _Loader("")).construct_document(node)
    except (yaml.YAMLError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"the value does not fit its tag {node.tag}") from error


def _yaml_problem(error: yaml.YAMLError | ValueError, where: str, *, key: str = "", text: str = "") -> Problem:
    reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).partition("\n")[0]
    return problem(f"Not valid YAML: {reason}.", key=key, where=where, text=text)


def _leaves(key: str, node: yaml.Node, where: str, locate: Callable[[yaml.Node], str]) -> Iterator[Setting | Problem]:
    """Yield one setting for each leaf of a YAML node. `locate` returns the place of a key below `node`."""
    leaf = leaf_of(key)
    field = schema().get(leaf)
    if field is not None and (key == leaf or get_origin(field.type) is dict):
        try:
            yield Setting(key=key, where=where, text=_source(node), value=_value(node, field.type))
        except (yaml.YAMLError, ValueError) as error:
            yield _yaml_problem(error, where, key=key, text=_source(node))
    elif field is not None:
        message = f"{leaf} has no keys below it: it is {describe(field.type)}."
        yield problem(message, key=key, where=where, text=_source(node))
    elif key and key not in sections():
        yield unknown_key(key, where, _source(node))
    elif not isinstance(node, yaml.MappingNode):
        first = next(known for known in schema() if known.startswith(f"{key}."))
        message = f"{key} is a section and cannot have a value. Set its keys, for example {first}."
        yield problem(message, key=key, where=where, text=_source(node))
    else:
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                yield problem("A key must be a single word.", key=key, where=locate(name))
            elif not name.value:
                yield problem("A key must not be empty.", key=f"{key}.", where=locate(name), text=_source(value))
            elif "." in name.value:
                nested = name.value.replace(".", ": {", 1)
                message = f"A key in a YAML file has no dots. Write it as a section: {nested}: ...}}"
                yield problem(message, key=name.value, where=locate(name), text=_source(value))
            else:
                yield from _leaves(f"{key}.{name.value}" if key else name.value, value, locate(name), locate)


def _repeated(key: str, node: yaml.Node, locate: Callable[[yaml.Node], str]) -> Iterator[Problem]:
    """Yield a problem for each key that a mapping has twice. YAML forbids duplicate keys, but PyYAML takes the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(key, item, locate)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, str] = {}
        for name, value in node.value:
            below = f"{key}.{name.value}" if key else str(name.value)
            if below in lines:
                settings = tuple(Setting(key=below, where=where) for where in (lines[below], locate(name)))
                yield Problem(settings=settings, message="Written twice in one place. Keep one of them.")
            lines[below] = locate(name)
            yield from _repeated(below, value, locate)


def read_file(file: Path, named_in: str, chain: tuple[Path, ...] = ()) -> Iterator[Setting | Problem]:
    """Yield the settings of a YAML file, after the settings of its `base`. `chain` holds the files that led here."""
    try:
        if file.resolve() in chain:
            yield problem(f"base: {file} leads back to a file that is based on {file}.", where=named_in)
            return
        root = _compose(file.read_text(encoding="utf-8"))
    except OSError as error:
        yield problem(f"Can not read {file}: {error.strerror}.", where=named_in)
        return
    except (yaml.YAMLError, ValueError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        yield _yaml_problem(error, f"{file}:{mark.line + 1}" if mark else str(file))
        return
    if not isinstance(root, yaml.MappingNode):
        yield problem(
            "The file is empty." if root is None else "The file must hold sections, such as run: {name: first}.",
            where=str(file),
        )
        return

    def locate(node: yaml.Node) -> str:
        return f"{file}:{node.start_mark.line + 1}"

    yield from _repeated("", root, locate)
    own: list[tuple[yaml.Node, yaml.Node]] = []
    for name, value in root.value:
        if name.value != "base":
            own.append((name, value))
        elif isinstance(value, yaml.ScalarNode) and value.value:
            yield from read_file(file.parent / value.value, locate(name), (*chain, file.resolve()))
        else:
            yield problem("Must be the path of one YAML file.", key="base", where=locate(name))
    yield from _leaves("", yaml.MappingNode(root.tag, own), str(file), locate)


def from_earlier_version(item: Setting | Problem) -> Iterator[Setting | Problem]:
    """Translate a removed key of an earlier run to its present setting, or to nothing if no such setting exists."""
    if not isinstance(item, Problem) or item.key not in REMOVED:
        yield item
    elif new_key := REMOVED[item.key][0]:
        old = item.settings[0]
        for new in read_override(f"{new_key}={old.text}"):
            yield replace(new, where=old.where) if isinstance(new, Setting) else new


def read_override(override: str) -> Iterator[Setting | Problem]:
    """Yield the settings of one `key=value` from the command line."""
    key, equals, text = override.partition("=")
    if not equals:
        yield problem(
            "A setting on the command line is written key=value, without spaces.",
            key=override,
            where=COMMAND_LINE,
            nearest=nearest(key, (*sections(), *schema())),
        )
    elif not re.fullmatch(r"[A-Za-z_]\w*(\.[\w-]+)*", key):
        yield problem("A key is a section and a name, such as run.name=first.", key=override, where=COMMAND_LINE)
    else:
        try:
            node = _compose(text)
        except (yaml.YAMLError, ValueError) as error:
            yield _yaml_problem(error, COMMAND_LINE, key=override)
            return
        if node is None:
            yield problem("There is nothing after the =. Write null for none.", key=override, where=COMMAND_LINE)
            return
        yield from _repeated(key, node, lambda _: COMMAND_LINE)
        yield from _leaves(key, node, COMMAND_LINE, lambda _: COMMAND_LINE)

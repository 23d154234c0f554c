"""Explanations of settings, and settings as YAML."""

from __future__ import annotations

import textwrap
from functools import reduce
from operator import getitem
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
)

from maxpo.configure.fields import schema
from maxpo.configure.loading import LoadedConfig, value_of
from maxpo.configure.problems import ConfigError, show
from maxpo.configure.reading import COMMAND_LINE, unknown_key
from maxpo.configure.rules.general import allowed, ranges_of


def explain(key: str | None = None) -> str:
    """Explain a key, all keys of a section, or all keys if `key` is None: default, type, range and docstring.

    Raises:
        ConfigError: No such key or section exists. The error holds the nearest ones.
    """
    chosen = [known for known in schema() if key is None or known == key or known.startswith(f"{key}.")]
    if not chosen:
        raise ConfigError([unknown_key(str(key), COMMAND_LINE)])
    entries: list[str] = []
    for known in chosen:
        field = schema()[known]
        default = show(field.default) if field.default != MISSING else "(must be set)"
        # A range that is the choice of a registry repeats the type.
        ranges = [must.message for must in ranges_of(known) if must.message != f"Must be {allowed(known)}."]
        text = "\n".join([allowed(known), *ranges, field.doc])
        entries.append(f"{known} = {default}\n{textwrap.indent(text, '    ')}")
    return "\n\n".join(entries)


def as_written(loaded: LoadedConfig) -> dict[str, str]:
    """Return the text of every key as the user wrote it, with its references."""
    raw: Any = OmegaConf.to_container(loaded.tree, resolve=False)
    return {key: str(reduce(getitem, key.split("."), raw)) for key in schema()}


def calls_resolver(text: str) -> bool:
    """Return True if a text of `as_written` calls a resolver, such as `${oc.env:TOKEN}`."""
    return "${" in text and ":" in text


def to_yaml(loaded: LoadedConfig) -> str:
    """Return all settings as YAML that `load_config` can read.

    `${section.key}` is resolved. A value that calls a resolver, such as `${oc.env:TOKEN}`, stays as written. So does a
    value that refers to such a value, so that no secret gets into a file.
    """
    shown, public = loaded.tree.copy(), loaded.tree.copy()
    written = as_written(loaded)
    for key, text in written.items():
        if calls_resolver(text):
            OmegaConf.update(public, key, MISSING)
    for key, text in written.items():
        if "${" in text:
            try:
                value = value_of(public, key)
            except (MissingMandatoryValue, InterpolationToMissingValueError):
                continue  # The value reads a resolver's result, directly or through another key.
            if "${" not in str(value):  # An escaped \${...} is text now, but a later load would resolve it.
                OmegaConf.update(shown, key, value)
    return OmegaConf.to_yaml(shown)

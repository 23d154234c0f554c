"""Explains settings, and writes them as YAML."""

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
from maxpo.configure.rules.general import allowed


def explain(key: str | None = None) -> str:
    """Says what a key means, or all keys of a section, or without `key` all there are.

    Raises:
        ConfigError: There is no such key or section; it holds the nearest ones.
    """
    chosen = [known for known in schema() if key is None or known == key or known.startswith(f"{key}.")]
    if not chosen:
        raise ConfigError([unknown_key(str(key), COMMAND_LINE)])
    entries: list[str] = []
    for known in chosen:
        field = schema()[known]
        default = show(field.default) if field.default != MISSING else "(must be set)"
        text = f"{allowed(known)}\n{field.doc}"
        entries.append(f"{known} = {default}\n{textwrap.indent(text, '    ')}")
    return "\n\n".join(entries)


def to_yaml(loaded: LoadedConfig) -> str:
    """Writes every setting as YAML that `load_config` reads again.

    `${section.key}` is resolved. What calls a resolver, such as `${oc.env:TOKEN}`, stays as written, and so does what
    refers to it, so that no secret lands in a file.
    """
    shown, public = loaded.tree.copy(), loaded.tree.copy()
    raw: Any = OmegaConf.to_container(loaded.tree, resolve=False)
    written = {key: str(reduce(getitem, key.split("."), raw)) for key in schema()}
    for key, text in written.items():
        if "${" in text and ":" in text:
            OmegaConf.update(public, key, MISSING)
    for key, text in written.items():
        if "${" in text:
            try:
                value = value_of(public, key)
            except (MissingMandatoryValue, InterpolationToMissingValueError):
                continue  # It reads a resolver's result, directly or through another key.
            if "${" not in str(value):  # An escaped \${...} is text now, but would be resolved when it is read again.
                OmegaConf.update(shown, key, value)
    return OmegaConf.to_yaml(shown)

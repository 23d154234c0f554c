"""Loads the settings of a run from YAML files and the command line, and explains every key.

OmegaConf does the typing and the interpolation. Values are set one by one, so that everything that is wrong is reported
at once, each with the place where it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from maxpo.config import Config
from maxpo.configure.checking import check
from maxpo.configure.fields import leaf_of, schema, sections
from maxpo.configure.problems import ConfigError, Problem, Setting, problem
from maxpo.configure.reading import COMMAND_LINE, read_file, read_override
from maxpo.configure.rules.general import allowed
from maxpo.wording import parts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """Settings that passed every check."""

    config: Config
    """Plain typed dataclasses, interpolations resolved."""
    tree: DictConfig
    """The same as an OmegaConf tree, interpolations as written."""
    origin: dict[str, Setting]
    """Where each key was set last; a key that is not there has its default."""


def load_config(files: Sequence[Path], overrides: Sequence[str], *, files_here: bool = True) -> LoadedConfig:
    """Merges defaults, YAML files in their order and `key=value` overrides, later ones over earlier ones.

    A file may name another one, relative to itself, with the top-level key `base`; that one is merged before it.
    Sections and mappings such as `data.task_args` are merged key by key, lists are replaced. With `files_here` off,
    what the settings name is on another machine and is not looked for: the model, the data and a checkpoint.

    Raises:
        ConfigError: With everything that is wrong. After a file that can not be read, missing values and ranges are
            not reported: they may be what that file sets.
    """
    tree: DictConfig = OmegaConf.structured(Config)
    origin: dict[str, Setting] = {}
    problems: list[Problem] = []
    found = [item for file in files for item in read_file(Path(file), COMMAND_LINE)]
    found += [item for override in overrides for item in read_override(override)]
    for item in found:
        if isinstance(item, Setting):
            origin[leaf_of(item.key)] = item
        wrong = _set(tree, item) if isinstance(item, Setting) else item
        # A base that two files share is read twice; its problems are not worth saying twice.
        if wrong is not None and wrong not in problems:
            problems.append(wrong)
    if any(not wrong.key for wrong in problems):
        raise ConfigError(problems)

    values: dict[str, Any] = {}
    reported = {leaf_of(wrong.key) for wrong in problems}
    for key in schema():
        setting = origin.get(key) or Setting(key=key, where="not set")
        values[key], wrong = _resolve(tree, key, setting)
        if wrong is not None and key not in reported:
            problems.append(wrong)
    config = _build(values)
    problems += check(config, origin, files_here=files_here)
    if problems:
        raise ConfigError(problems)
    return LoadedConfig(config=config, tree=tree, origin=origin)


def _set(tree: DictConfig, setting: Setting) -> Problem | None:
    """Sets one value; one of the wrong type becomes MISSING, so that no check is made on a default in its place."""
    leaf, value = leaf_of(setting.key), setting.value
    hint = schema()[leaf].type
    message = f"Must be {allowed(leaf)}."
    section, _, name = leaf.rpartition(".")
    if setting.key != leaf and OmegaConf.is_missing(OmegaConf.select(tree, section), name):
        return None  # An earlier entry of the same mapping was refused and is already reported.
    try:
        # OmegaConf takes any number for a bool, and one of them allows a run folder to be deleted.
        if hint is not bool or isinstance(value, bool | str):
            OmegaConf.update(tree, setting.key, value)
            return None
    except GrammarParseError:
        message = "The ${...} in it can not be read: it is ${section.key} or ${oc.env:NAME}."
    except OmegaConfBaseException:
        if int in parts(hint) and isinstance(value, float) and value.is_integer():
            message += f" Write {int(value)}."
    OmegaConf.update(tree, leaf, MISSING)
    return Problem(settings=(setting,), message=message)


def value_of(tree: DictConfig, key: str) -> Any:
    """Reads a leaf with every interpolation in it resolved."""
    value = OmegaConf.select(tree, key, throw_on_missing=True)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _resolve(tree: DictConfig, key: str, setting: Setting) -> tuple[Any, Problem | None]:
    """Reads the value of a key, MISSING if there is none, and what is wrong with it."""
    try:
        value, kinds = value_of(tree, key), [get_origin(part) for part in parts(schema()[key].type)]
        if not isinstance(value, str) or not {list, dict} & set(kinds):
            return value, None
        # An escaped reference is text, which OmegaConf lets pass for a list or a mapping.
        message = f"What the ${{...}} stands for is not {allowed(key)}."
    except MissingMandatoryValue:
        message = f"Must be set to {allowed(key)}; there is no default. {schema()[key].doc}"
        return MISSING, problem(message, key=key, where=setting.where)
    except ValidationError:
        # OmegaConf's own text holds the resolved value, which may be a secret.
        message = f"What the ${{...}} stands for is not {allowed(key)}."
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0].rpartition("resolving interpolation: ")[2].strip('"')
        # Likewise: a nested interpolation may have put a secret into the name of what was not found.
        message = f"{reason}." if setting.text.count("${") == 1 else "The ${...} in it can not be resolved."
    return MISSING, Problem(settings=(setting,), message=message)


def _build(values: dict[str, Any]) -> Config:
    """Makes the dataclasses from typed values by dotted key."""
    whole: dict[str, dict[str, Any]] = {section: {} for section in ("", *sections())}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        whole[section][name] = value
    for section, cls in reversed(sections().items()):  # those within another one first
        outer, _, name = section.rpartition(".")
        whole[outer][name] = cls(**whole[section])
    return Config(**whole[""])

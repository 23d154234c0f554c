"""Loading of the settings of a run from YAML files and the command line.

OmegaConf does the typing and the interpolation. Values are set one by one, so that all problems are reported at once,
each with the file and line of the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from maxpo.configure.reading import COMMAND_LINE, from_earlier_version, read_file, read_override
from maxpo.configure.rules.general import allowed
from maxpo.configure.values import wrong_value
from maxpo.wording import parts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """Settings that passed every check."""

    config: Config
    """Plain typed dataclasses with interpolations resolved."""
    tree: DictConfig
    """OmegaConf tree of the same settings with interpolations as written."""
    origin: dict[str, Setting]
    """Last setting of each key. A key that is absent has its default."""


def load_config(
    files: Sequence[Path], overrides: Sequence[str], *, files_here: bool = True, earlier_run: bool = False
) -> LoadedConfig:
    """Merge defaults, YAML files in their order, and `key=value` overrides. Later values win.

    A file may name another file with the top-level key `base`, relative to itself. The named file is merged first.
    Sections and mappings such as `data.task_args` are merged key by key. Lists are replaced.

    Args:
        files: YAML files.
        overrides: Settings of the command line.
        files_here: False if model, data and checkpoint are on another machine. Their existence is not checked then.
        earlier_run: True if the files may be from an earlier version of MaxPO. Removed keys are translated then.

    Raises:
        ConfigError: With every problem. Missing values and ranges are not reported after a file that cannot be read,
            because this file may set them.
    """
    items = [item for file in files for item in read_file(Path(file), COMMAND_LINE)]
    if earlier_run:
        items = [new for item in items for new in from_earlier_version(item)]
    items += [item for override in overrides for item in read_override(override)]
    tree: DictConfig = OmegaConf.structured(Config)
    origin, problems = _merge(tree, items)
    if any(not wrong.key for wrong in problems):
        raise ConfigError(problems)
    values, unresolved = _resolve_all(tree, origin)
    reported = {leaf_of(wrong.key) for wrong in problems}
    problems += [wrong for wrong in unresolved if wrong.key not in reported]
    config = _build(values)
    problems += check(config, origin, files_here=files_here)
    loaded = LoadedConfig(config=config, tree=tree, origin=origin)
    if problems:
        raise ConfigError(problems, loaded)
    return loaded


def _merge(tree: DictConfig, items: Iterable[Setting | Problem]) -> tuple[dict[str, Setting], list[Problem]]:
    """Set every value in the tree. Return the last setting of each key, and all problems."""
    origin: dict[str, Setting] = {}
    problems: list[Problem] = []
    for item in items:
        if isinstance(item, Setting):
            origin[leaf_of(item.key)] = item
        wrong = _set(tree, item) if isinstance(item, Setting) else item
        # A base that two files share is read twice. Its problems are reported once.
        if wrong is not None and wrong not in problems:
            problems.append(wrong)
    return origin, problems


def _resolve_all(tree: DictConfig, origin: Mapping[str, Setting]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the value of every key, MISSING if it has none, and the problems."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key in schema():
        values[key], wrong = _resolve(tree, key, origin.get(key) or Setting(key=key, where="not set"))
        if wrong is not None:
            problems.append(wrong)
    return values, problems


def _set(tree: DictConfig, setting: Setting) -> Problem | None:
    """Set one value. A value of the wrong type becomes MISSING, so the default is not checked in its place."""
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
        message = "The ${...} cannot be read. Write ${section.key} or ${oc.env:NAME}."
    except OmegaConfBaseException:
        if int in parts(hint) and isinstance(value, float) and value.is_integer():
            message += f" Write {int(value)}."
    # OmegaConf also raises errors of Python for values of a wrong shape.
    except Exception as error:
        message += f" ({type(error).__name__})"
    OmegaConf.update(tree, leaf, MISSING)
    return Problem(settings=(setting,), message=message)


def value_of(tree: DictConfig, key: str) -> Any:
    """Return the value of a key with every interpolation resolved."""
    value = OmegaConf.select(tree, key, throw_on_missing=True)
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _resolve(tree: DictConfig, key: str, setting: Setting) -> tuple[Any, Problem | None]:
    """Return the value of a key, MISSING if it has none, and its problem."""
    try:
        value = value_of(tree, key)
        message = wrong_value(value, key)
        if message is None:
            return value, None
        if "${" in setting.text:
            message = f"What the ${{...}} stands for is wrong. {message}"
    except MissingMandatoryValue:
        message = f"Must be set to {allowed(key)}; there is no default. {schema()[key].doc}"
        return MISSING, problem(message, key=key, where=setting.where)
    except ValidationError:
        # OmegaConf's own text holds the resolved value, which may be a secret.
        message = f"What the ${{...}} stands for is not {allowed(key)}."
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0].rpartition("resolving interpolation: ")[2].strip('"')
        # The name that OmegaConf did not find may hold a secret too, if an interpolation is nested.
        message = f"{reason}." if setting.text.count("${") == 1 else "The ${...} cannot be resolved."
    # A resolver, such as oc.decode, may raise anything, with the value in its message.
    except Exception as error:
        message = f"The ${{...}} cannot be resolved ({type(error).__name__})."
    return MISSING, Problem(settings=(setting,), message=message)


def _build(values: dict[str, Any]) -> Config:
    """Return the dataclasses of typed values by dotted key."""
    whole: dict[str, dict[str, Any]] = {section: {} for section in ("", *sections())}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        whole[section][name] = value
    for section, cls in reversed(sections().items()):  # inner sections first
        outer, _, name = section.rpartition(".")
        whole[outer][name] = cls(**whole[section])
    return Config(**whole[""])


def replaced(loaded: LoadedConfig, values: Mapping[str, Any]) -> LoadedConfig:
    """Return the settings with other values of some keys, such as `model.path`. They are not checked again."""
    config, tree = loaded.config, loaded.tree.copy()
    for key, value in values.items():
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        OmegaConf.update(tree, key, value)
    return replace(loaded, config=config, tree=tree)

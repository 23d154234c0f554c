"""Paths that mean the same from any folder, on every node that sees the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig, replaced
from maxpo.configure.writing import as_written, calls_resolver
from maxpo.plugins import file_of, with_absolute_file
from maxpo.rewards.registry import names_in_use

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the driver of a job."""
PATHS = ("run.dir", "model.path", "learner.deepspeed", "data.train_file", "data.eval_file")


def with_absolute_paths(loaded: LoadedConfig) -> LoadedConfig:
    """Return the settings with absolute paths, for workers in other folders, and for a resume from another folder.

    A path that reads an environment variable stays as written. A job is left as it is: all its processes start in the
    folder that Ray unpacked, which is another one the next time.
    """
    if JOB in os.environ:
        return loaded
    config = loaded.config
    new: dict[str, object] = {}
    for key in PATHS:
        section, _, name = key.partition(".")
        if value := getattr(getattr(config, section), name):
            new[key] = str(Path(value).absolute())
    if config.checkpoint.resume not in ("auto", "must", "never"):
        new["checkpoint.resume"] = str(Path(config.checkpoint.resume).absolute())
    for key, sources in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if sources:
            new[key] = [_absolute_source(entry) for entry in sources]
    new |= _absolute_functions(config)
    written = as_written(loaded)
    return replaced(loaded, {key: value for key, value in new.items() if not calls_resolver(written[key])})


def _absolute_functions(config: Config) -> dict[str, object]:
    """Return the settings that name functions in files, with absolute paths of these files."""
    algorithm, reward = config.algorithm, config.reward
    new: dict[str, object] = {
        f"algorithm.{key}": with_absolute_file(name)
        for key in ("advantage", "mix_with", "loss")
        if (name := getattr(algorithm, key)) and file_of(name)
    }
    if any(map(file_of, algorithm.shadow)):
        new["algorithm.shadow"] = [with_absolute_file(name) for name in algorithm.shadow]
    if reward.group and file_of(reward.group):
        new["reward.group"] = with_absolute_file(reward.group)
    if any(map(file_of, names_in_use(reward))):
        new["reward.verifier"] = with_absolute_file(reward.verifier)
        new["reward.by_source"] = {source: with_absolute_file(name) for source, name in reward.by_source.items()}
        for key in ("parts", "args"):
            new[f"reward.{key}"] = {with_absolute_file(name): v for name, v in getattr(reward, key).items()}
    return new


def _absolute_source(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a source of rows with an absolute path, unless it is the name of a dataset."""
    source = entry.get("source")
    if not isinstance(source, str) or not Path(source).exists():
        return entry
    return {**entry, "source": str(Path(source).absolute())}

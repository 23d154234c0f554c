"""Paths that mean the same from any folder, on every node that sees the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from maxpo.configure.loading import LoadedConfig, replaced
from maxpo.configure.writing import as_written, calls_resolver

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
    written = as_written(loaded)
    return replaced(loaded, {key: value for key, value in new.items() if not calls_resolver(written[key])})


def _absolute_source(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a source of rows with an absolute path, unless it is the name of a dataset."""
    source = entry.get("source")
    if not isinstance(source, str) or not Path(source).exists():
        return entry
    return {**entry, "source": str(Path(source).absolute())}

"""The date that the prompts of a run name."""

from __future__ import annotations

from pathlib import Path

import yaml

from maxpo.configure.loading import LoadedConfig, replaced
from maxpo.data.templates import today
from maxpo.errors import CheckpointError


def with_date(loaded: LoadedConfig) -> LoadedConfig:
    """Return the settings with `data.date`: that of the run to continue, or else today's.

    Raises:
        CheckpointError: the settings of the run cannot be read.
    """
    config = loaded.config
    if config.data.date is not None:
        return loaded
    wanted = config.checkpoint.resume
    source = Path(config.run.dir) / config.run.name if wanted in ("auto", "must") else Path(wanted)
    day = None
    if wanted != "never" and (file := source / "config.yaml").is_file():
        try:
            day = yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("date")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise CheckpointError(f"{file} does not hold the settings of a run: {error}") from error
    day = day or today()
    return replaced(loaded, {"data.date": day})

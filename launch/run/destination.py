"""Checks of the run folder and of the checkpoint to continue from, which change nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from launch.run.folder import belongs, taken
from launch.run.resuming import describe_changes, find_checkpoint, remote_store
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import Config
from maxpo.errors import InputError


def destination_problems(config: Config) -> Iterator[str]:
    """Yield why the run cannot have its folder, or cannot continue as `checkpoint.resume` says."""
    try:
        remote = remote_store(config)
        _try_to_write(Path(config.run.dir))
        folder, wanted = Path(config.run.dir) / config.run.name, config.checkpoint.resume
        checkpoints = Checkpoints(folder / "checkpoints")
        if wanted == "must" and not checkpoints.steps() and remote is None:
            yield (
                f"checkpoint.resume = must, but {folder} has no checkpoint to go on from: use auto or never for a new "
                "run, or correct run.dir and run.name"
            )
        named = wanted not in ("never", "auto", "must")
        goes_on = belongs(Path(wanted), checkpoints) if named else wanted != "never" and bool(checkpoints.steps())
        if not goes_on and wanted != "must" and (reason := taken(config, replace=wanted == "auto")):
            yield reason
    except InputError as error:
        yield str(error)
    except OSError as error:
        yield f"run.dir = {config.run.dir}: the run folder cannot be read: {error}; choose another one"


def resumed_from(config: Config, settings: str) -> Path | None:
    """Return the verified checkpoint on this machine that the run would continue from, None for a new run.

    Args:
        config: Checked settings.
        settings: The settings as YAML.

    Raises:
        InputError: the checkpoint is damaged, or belongs to a run with other settings.
    """
    checkpoints = Checkpoints(Path(config.run.dir) / config.run.name / "checkpoints")
    if config.checkpoint.remote and config.checkpoint.resume in ("auto", "must") and not checkpoints.steps():
        return None  # it would have to be fetched
    quiet = Console(quiet=True)
    source = find_checkpoint(config, checkpoints, quiet)
    if source is not None:
        describe_changes(source, settings, quiet)
    return source


def new_folder(folder: Path) -> Path:
    """Create the folder of `--out`, and return it. It may hold what an interrupted command has left.

    Raises:
        InputError: the folder holds something else, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror}") from error
    if others := [name for name in names if name not in ("log", "rollouts")]:
        raise InputError(
            f"--out {folder}: the folder already holds {others[0]}; name a new folder with --out, or remove this one"
        )
    return folder


def _try_to_write(folder: Path) -> None:
    """Raise InputError unless a file can be created in a folder or, if it does not exist, in the nearest one above."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"run.dir = {folder} cannot be written: {error.strerror or error}; choose another folder"
        ) from error

"""The folder of a run: creating, continuing and locking."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from launch.run.resuming import describe_changes, find_checkpoint, go_back_to, remote_store
from launch.terminal.printing import say
from maxpo.checkpoints.local import LATEST, Checkpoints
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError
from maxpo.files import remove
from maxpo.tracking.run_log import METRICS_FILE

BEFORE_RESULTS = {"config.yaml", "log", "tensorboard", "rollouts", "checkpoints", METRICS_FILE}
"""Names in a run folder whose run has not got any result yet."""


def open_run(loaded: LoadedConfig, console: Console) -> tuple[Path, Path | None, Checkpoints]:
    """Return the run folder, the checkpoint to continue from (None: a new run), and the store of checkpoints.

    Raises:
        CheckpointError: the checkpoint that the settings ask for cannot be used.
        InputError: the folder cannot be written, or see `_new_run_folder`.
    """
    config, settings = loaded.config, to_yaml(loaded)
    folder, saving = Path(config.run.dir) / config.run.name, config.checkpoint
    checkpoints = Checkpoints(
        folder / "checkpoints",
        keep_last=saving.keep_last,
        keep_every=saving.keep_every,
        keep_best=saving.keep_best,
        attached={"config.yaml": settings, METRICS_FILE: folder / METRICS_FILE},
        asynchronous=saving.asynchronous,
        remote=remote_store(config),
        say=partial(say, console),
    )
    source = find_checkpoint(config, checkpoints, console)
    if source is not None:
        describe_changes(source, settings, console)
        go_back_to(source, checkpoints, console, named=saving.resume not in ("auto", "must"))
    try:
        if source is None or not belongs(source, checkpoints):
            _new_run_folder(config, replace=saving.resume == "auto" and not _has_results(folder))
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
        if source is not None and not (folder / METRICS_FILE).exists() and (source / METRICS_FILE).exists():
            shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)  # the run folder was lost
    except OSError as error:
        raise InputError(f"the run folder cannot be written: {error}") from error
    return folder, source, checkpoints


def belongs(source: Path, checkpoints: Checkpoints) -> bool:
    """Return True if a checkpoint is one of this run or lies anywhere in its folder, by whatever links.

    Such a run folder is never emptied, even if the run continues from it under `run.overwrite`.
    """
    folder = checkpoints.folder.parent
    written, real = Path(os.path.abspath(source)), source.resolve()  # noqa: PTH100  # absolute() would keep ".."
    inside = Path(os.path.abspath(folder)) in written.parents or folder.resolve() in real.parents  # noqa: PTH100
    return inside or checkpoints.has(source)


def taken(config: Config, *, replace: bool) -> str | None:
    """Return the reason if the folder of a new run holds results or files of others, None if it may be used.

    Args:
        config: `run.dir`, `run.name`, `run.overwrite`.
        replace: True if a run without results may be replaced.
    """
    folder = Path(config.run.dir) / config.run.name
    if folder.exists() and not folder.is_dir():
        return f"{folder} is no folder, so the run cannot be written there: choose another run.name"
    if not folder.exists() or config.run.overwrite or (replace and not _has_results(folder)):
        return None
    found = _content(folder)
    how = "choose another run.name, or replace it with run.overwrite=true"
    return f"{folder} exists already and holds {found}: {how}" if found else None


def _new_run_folder(config: Config, *, replace: bool) -> None:
    """Create the folder of a run. What a start without results has left there is removed.

    Args:
        config: `run.dir`, `run.name`, `run.overwrite`.
        replace: an existing folder holds nothing to continue from, so replace its content.

    Raises:
        InputError: the folder holds results or files of others, and `run.overwrite` is off; or it cannot be emptied.
        OSError: the folder cannot be written.
    """
    folder = Path(config.run.dir) / config.run.name
    if folder.exists():
        if reason := taken(config, replace=replace):
            raise InputError(reason)
        for path in folder.iterdir():
            remove(path)
        if left := [path.name for path in folder.iterdir()]:
            raise InputError(f"{folder / left[0]} cannot be removed: remove it, or choose another run.name")
    folder.mkdir(parents=True, exist_ok=True)


def _content(folder: Path) -> str | None:
    """Return the name of a file in a run folder that a start without results does not leave, or None."""
    if results := _has_results(folder):
        return results
    metrics, rollouts = folder / METRICS_FILE, folder / "rollouts"
    if metrics.exists() and metrics.stat().st_size:
        return METRICS_FILE
    if rollouts.is_dir() and any(rollouts.iterdir()):
        return rollouts.name
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in BEFORE_RESULTS), None)


def _has_results(folder: Path) -> str | None:
    """Return the name of an exported policy, or of a checkpoint in whatever state, or None.

    A link that leads nowhere may lead to a disk that is not mounted now.
    """
    there = folder / "checkpoints"
    for path in (there, folder / "policy"):
        if path.is_symlink() and not path.exists():
            return f"{path.name}, a link to {path.readlink()}, which is not there"
    if (folder / "policy").exists():
        return "policy"
    names = sorted(path.name for path in there.iterdir()) if there.is_dir() else []
    return next((f"checkpoints/{name}" for name in names if not name.startswith(".") and name != LATEST), None)


@contextmanager
def locked(folder: Path, name: str, console: Console) -> Iterator[None]:
    """Let no other process train the run `name` in `folder`, until the end of the block.

    Raises:
        InputError: another process trains the run, or the folder cannot be written.
    """
    path = folder / f".{name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"run.dir = {folder} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            user = file.read().decode(errors="replace").strip()
            raise InputError(f"{folder / name} is in use by {user}: wait for it, or choose another run.name") from None
        except OSError as error:
            text = f"{path} cannot be locked ({error}): make sure that no other process trains this run"
            say(console, text)
        with suppress(OSError):  # the content serves the message above only
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield

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
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError
from maxpo.tracking.run_log import METRICS_FILE


def open_run(loaded: LoadedConfig, console: Console) -> tuple[Path, Path | None, Checkpoints]:
    """Return the run folder, the checkpoint to continue from (None: a new run), and the store of checkpoints.

    Raises:
        CheckpointError: the checkpoint that the settings ask for cannot be used.
        FileExistsError: see `_new_run_folder`.
        InputError: the folder cannot be written.
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
    if source is None or folder.resolve() not in source.resolve().parents:
        # A finished run without checkpoints cannot be continued, but its results must not be removed.
        try:
            _new_run_folder(config, replace=saving.resume == "auto" and not (folder / "policy").exists())
        except FileExistsError:
            raise
        except OSError as error:
            raise InputError(f"the run folder cannot be written: {error}") from error
    try:
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
        if source is not None and not (folder / METRICS_FILE).exists() and (source / METRICS_FILE).exists():
            shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)  # the run folder was lost
    except OSError as error:
        raise InputError(f"the run folder cannot be written: {error}") from error
    return folder, source, checkpoints


def _new_run_folder(config: Config, *, replace: bool) -> None:
    """Create the folder of a run.

    Args:
        config: `run.dir`, `run.name`, `run.overwrite`.
        replace: an existing folder holds nothing to continue from, so replace it.

    Raises:
        FileExistsError: a run was begun in the folder, and `run.overwrite` is off.
    """
    folder = Path(config.run.dir) / config.run.name
    if folder.exists():
        never_began = {file.name for file in folder.rglob("*")} <= {"config.yaml", "log"}
        if not (config.run.overwrite or replace or never_began):
            raise FileExistsError(
                f"{folder} exists already: choose another run.name, or replace it with run.overwrite=true"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


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

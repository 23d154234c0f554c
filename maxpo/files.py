"""Small helpers for files: names, replacing, flushing, JSON, and errors that name the file."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from maxpo.errors import RunError


def step_name(step: int, kind: str = "step") -> str:
    """Return the name of a file or folder that belongs to a training step, for example `step_000040`."""
    return f"{kind}_{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step whose `step_name` is `name`, or None if there is no such step."""
    match = re.fullmatch("step_([0-9]+)", name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


@contextmanager
def clear_errors(path: Path) -> Generator[None]:
    """Turn an error of the file system into a RunError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error


def hidden(path: Path, ending: str = "partial") -> Path:
    """Return the path beside `path` that no reader looks at, where its next content is written."""
    return path.with_name(f".{path.name}.{ending}")


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Write a file or a folder as a whole or not at all.

    Yields:
        A path beside `path` that does not exist yet. What is there at the end is moved to `path` by `put_in_place`.
        After an error it is removed, and `path` is as it was.
    """
    recover(path)
    partial = hidden(path)
    remove(partial)
    try:
        yield partial
        put_in_place(partial, path)
    except BaseException:
        remove(partial)
        raise


def put_in_place(partial: Path, path: Path) -> None:
    """Flush the file or the folder `partial` and rename it to `path`, which it replaces.

    If the process dies, either the old or the new content is left whole. For a moment an old folder is not at `path`
    but beside it, with the ending `old`, because no rename replaces a folder that has files. `recover` puts it back.
    """
    for part in (*partial.rglob("*"), partial):
        flush(part)
    if not partial.is_dir():
        partial.replace(path)
    else:
        old = hidden(path, "old")
        if path.exists():
            remove(old)
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    flush(path.parent)
    remove(hidden(path, "old"))


def recover(path: Path) -> None:
    """Put an old folder back to `path` if the process died in `put_in_place` between its two renames."""
    old = hidden(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder if there is one. Of a folder that resists, parts may stay."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force the content of a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # some network file systems cannot flush a folder
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write plain JSON values."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

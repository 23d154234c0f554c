"""The output of workers, in a file of the run folder from their first line on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NEW_PROCESS = "--- process "
"""Beginning of the line before the output of a process."""


def output_file(folder: Path | None, worker: str) -> Path | None:
    """Return the file of a worker's output in the folder of the logs, or None without such a folder."""
    return None if folder is None else folder.absolute() / f"{worker.replace(' ', '-')}.log"


def write_output_to(file: Path | None) -> None:
    """Append standard output and error of this process, and of processes that it starts later, to a file.

    Whatever happens to the process, the file keeps what was written. A replacement of the worker goes on in the file.

    Args:
        file: The file. None: the output stays where it goes.
    """
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(handle, f"{NEW_PROCESS}{os.getpid()}\n".encode())
    for standard in (1, 2):
        os.dup2(handle, standard)
    os.close(handle)

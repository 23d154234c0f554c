"""Commands and calls with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from maxpo.runtime.background import Background

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Output:
    """Output and exit code of a command. `code` is None if the deadline passed."""

    code: int | None
    out: str
    err: str


def run_limited(
    command: Sequence[str], seconds: float, *, given: str = "", env: dict[str, str] | None = None
) -> Output:
    """Run a command for at most `seconds`, then kill it and all processes that it started.

    The output goes to files. A pipe stays open until its last process ends, and a process that hangs in a driver does
    not end.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as stdin:
        stdin.write(given.encode())
        stdin.seek(0)
        process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err, env=env, start_new_session=True)
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        out.seek(0)
        err.seek(0)
        return Output(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"))


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a call that cannot be stopped, such as one to a file system or a name server.

    Raises:
        TimeoutError: the deadline passed; the thread is left behind.
    """
    return Background(call).result(seconds)

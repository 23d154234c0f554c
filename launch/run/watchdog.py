"""Watchdog that ends a run without progress, and records which worker is waited for."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import FrameType

import psutil

from maxpo.errors import RunError
from maxpo.evaluation.figures import EvalReport
from maxpo.loop.observer import Observer
from maxpo.runtime.waits import who_waits

GRACE_S = 60.0
"""Seconds that the main thread has to end the run. After that the process ends at once."""


class StalledError(RunError):
    """The run made no progress for `run.stall_timeout_s` seconds."""


class Watchdog(Observer):
    """Observer that passes every call on. After too long a silence, StalledError is raised in the main thread."""

    def __init__(self, inner: Observer, limit_s: float, folder: Path) -> None:
        """Prepare. The watch begins when the main thread enters the context.

        Args:
            inner: the observer that gets every call.
            limit_s: longest time without progress, in seconds; 0 means no limit.
            folder: folder of the report `stalled.txt`.
        """
        self._inner, self._limit_s, self._report = inner, limit_s, folder / "stalled.txt"
        self._closed = threading.Event()
        # The start of the workers has its own time limits, so the watch begins with the first stage.
        self._doing, self._last = "", math.inf

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._before = signal.signal(signal.SIGUSR2, self._stop)
        if self._limit_s:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop watching."""
        self._closed.set()
        signal.signal(signal.SIGUSR2, self._before)

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._inner.note(text)

    def stage(self, name: str, total: int = 0) -> None:
        """See `Observer`."""
        self._progress(f"stage {name}")
        self._inner.stage(name, total)

    def advance(self) -> None:
        """See `Observer`."""
        self._progress(self._doing)
        self._inner.advance()

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """See `Observer`."""
        self._progress(f"after step {step}")
        self._inner.step_done(step, metrics)

    def evaluated(self, step: int, result: EvalReport) -> None:
        """See `Observer`."""
        self._progress(f"after the evaluation of step {step}")
        self._inner.evaluated(step, result)

    def _progress(self, doing: str) -> None:
        self._doing, self._last = doing, time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._last > self._limit_s:
                self._text = f"no progress for run.stall_timeout_s = {self._limit_s:g} s in {self._doing}"
                try:
                    self._text = self._describe()
                except Exception as error:  # a full disk may be the cause; the run must end anyway
                    self._text += f"; the report could not be written: {error}"
                os.kill(os.getpid(), signal.SIGUSR2)
                if not self._closed.wait(GRACE_S):
                    print(f"maxpo: {self._text}\nThe main thread does not react.", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _stop(self, number: int, frame: FrameType | None) -> None:
        raise StalledError(self._text)

    def _describe(self) -> str:
        """Return a description of who waits for whom. Write it to the report, with the stacks of this process.

        The workers print their own stacks.
        """
        waits = [f"  waits {line}" for line in who_waits()] or ["  waits for no worker: see the stacks"]
        head = f"no progress for run.stall_timeout_s = {self._limit_s:g} s in {self._doing}:"
        asked = _ask_workers_for_stacks()
        text = "\n".join(
            [head, *waits, f"Stacks are in {self._report}, those of {len(asked)} workers in their output."]
        )
        self._report.parent.mkdir(parents=True, exist_ok=True)
        with self._report.open("a", encoding="utf-8") as file:
            print(datetime.now().isoformat(timespec="seconds"), text, *asked, sep="\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        return text


def _ask_workers_for_stacks() -> list[str]:
    """Let the actors on this machine print their stacks (`maxpo.runtime.waits.print_stacks_on_signal`).

    Return a line for each. Only a cluster that the run has started has actors among its child processes.
    """
    asked: list[str] = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            if title.startswith(("ray::RolloutWorker", "ray::LearnerWorker")):
                process.send_signal(signal.SIGUSR2)
                asked.append(f"{title.strip()}: process {process.pid}, {process.status()}")
        except psutil.Error:
            continue
    return asked

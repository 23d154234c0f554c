"""Ends a run that makes no progress, and writes down who waits for whom."""

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
"""Seconds in which the main thread must have ended the run once it is told to; then the process ends at once."""


class StalledError(RunError):
    """The run made no progress for `run.stall_timeout_s` seconds."""


class Watchdog(Observer):
    """Passes on what it observes. Where nothing comes for too long, StalledError is raised in the main thread."""

    def __init__(self, inner: Observer, limit_s: float, folder: Path) -> None:
        """Enter it, in the main thread, to begin.

        Args:
            inner: the observer to tell everything.
            limit_s: seconds without progress; 0: any number.
            folder: where `stalled.txt` goes.
        """
        self._inner, self._limit_s, self._report = inner, limit_s, folder / "stalled.txt"
        self._closed = threading.Event()
        # The start has time limits of its own, the watch begins with the first stage.
        self._doing, self._last = "", math.inf

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._before = signal.signal(signal.SIGUSR2, self._stop)
        if self._limit_s:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        """No more watching."""
        self._closed.set()
        signal.signal(signal.SIGUSR2, self._before)

    def stage(self, name: str, total: int = 0) -> None:
        """See Observer."""
        self._progress(f"stage {name}")
        self._inner.stage(name, total)

    def advance(self) -> None:
        """See Observer."""
        self._progress(self._doing)
        self._inner.advance()

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """See Observer."""
        self._progress(f"after step {step}")
        self._inner.step_done(step, metrics)

    def evaluated(self, step: int, result: EvalReport) -> None:
        """See Observer."""
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
                except Exception as error:  # a full disk may be the very cause; the run must end all the same
                    self._text += f"; who waits could not be written down: {error}"
                os.kill(os.getpid(), signal.SIGUSR2)
                if not self._closed.wait(GRACE_S):
                    print(f"maxpo: {self._text}\nThe main thread does not react.", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _stop(self, number: int, frame: FrameType | None) -> None:
        raise StalledError(self._text)

    def _describe(self) -> str:
        """Who waits for whom, also into the file, with the stacks of this process; the workers print their own."""
        waits = [f"  waits {line}" for line in who_waits()] or ["  waits for no worker: see the stacks"]
        head = f"no progress for run.stall_timeout_s = {self._limit_s:g} s in {self._doing}:"
        asked = _ask_workers_for_stacks()
        text = "\n".join([head, *waits, f"Stacks are in {self._report} and, of {len(asked)} workers, in their output."])
        self._report.parent.mkdir(parents=True, exist_ok=True)
        with self._report.open("a", encoding="utf-8") as file:
            print(datetime.now().isoformat(timespec="seconds"), text, *asked, sep="\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        return text


def _ask_workers_for_stacks() -> list[str]:
    """Have the actors of this run's own cluster print their stacks (`maxpo.runtime.waits.print_stacks_on_signal`)."""
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

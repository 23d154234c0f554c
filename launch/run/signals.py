"""Signals that ask a run to stop after its step, with a checkpoint, within a time limit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console

from maxpo.errors import RunError

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended, as in shells."""
PREEMPTED = 75
"""Exit code of a run that SIGTERM or SIGUSR1 ended (EX_TEMPFAIL). A scheduler may start the run again."""
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)


class StopTooLateError(RunError):
    """The step did not end in time after a request to stop."""


class StopRequest:
    """False until a signal asks for the end of the run."""

    def __init__(self) -> None:
        """Begin without a request."""
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """Exit code for the process."""
        return PREEMPTED if self.number in PREEMPTION else INTERRUPTED


@contextmanager
def stop_on_signal(console: Console, within_s: float) -> Iterator[StopRequest]:
    """Take Ctrl-C, SIGTERM and SIGUSR1 as requests to stop. A second Ctrl-C raises KeyboardInterrupt.

    Args:
        console: gets a line for the request.
        within_s: seconds from the request until StopTooLateError is raised.

    Yields:
        The request, which the loop reads.
    """
    asked = StopRequest()

    def say(text: str) -> None:
        with suppress(RuntimeError):  # the console may be in the middle of a line
            console.print(text, highlight=False)

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked.number = number
            signal.setitimer(signal.ITIMER_REAL, within_s)
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            say(f"{signal.Signals(number).name}: stopping after this step{again}")

    def too_late(number: int, frame: FrameType | None) -> None:
        raise StopTooLateError(f"the step did not end within checkpoint.stop_within_s = {within_s:g} s")

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGUSR1: ask, signal.SIGALRM: too_late}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

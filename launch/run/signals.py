"""Signals that ask a run to stop: at once before its first step, else after its step with a checkpoint."""

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


class PreemptedError(RunError):
    """A signal ended the run without a new checkpoint."""


class StopTooLateError(PreemptedError):
    """The step did not end in time after a request to stop."""


class StopRequest:
    """False until a signal asks for the end of the run."""

    def __init__(self) -> None:
        """Begin without a request, in a run that is starting."""
        self.number: int | None = None
        self.starting = True
        """True until the loop asks for the first time. Until then there is nothing to save."""

    def asked(self) -> bool:
        """Return True if the run shall end. The loop asks before each step."""
        self.starting = False
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """Exit code for the process."""
        return PREEMPTED if self.number in PREEMPTION else INTERRUPTED


@contextmanager
def stop_on_signal(console: Console, within_s: float) -> Iterator[StopRequest]:
    """Take Ctrl-C, SIGTERM and SIGUSR1 as requests to stop.

    Before the first step they end the run: Ctrl-C by KeyboardInterrupt, the others by PreemptedError. Later, a second
    Ctrl-C raises KeyboardInterrupt.

    Args:
        console: gets a line for the request.
        within_s: seconds from the request until StopTooLateError is raised.

    Yields:
        The request, which the loop reads.
    """
    request = StopRequest()

    def say(text: str) -> None:
        with suppress(RuntimeError):  # the console may be in the middle of a line
            console.print(text, highlight=False)

    def ask(number: int, frame: FrameType | None) -> None:
        again = request.number is not None
        if (request.starting or again) and number == signal.SIGINT:
            raise KeyboardInterrupt
        if request.starting and not again:
            request.number = number
            raise PreemptedError(f"{signal.Signals(number).name} before the first step: there is nothing to save")
        if not again:
            request.number = number
            signal.setitimer(signal.ITIMER_REAL, within_s)
            hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            say(f"{signal.Signals(number).name}: stopping after this step{hint}")

    def too_late(number: int, frame: FrameType | None) -> None:
        raise StopTooLateError(f"the step did not end within checkpoint.stop_within_s = {within_s:g} s")

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGUSR1: ask, signal.SIGALRM: too_late}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

"""A list of the waits that go on in this process, and the stacks of its threads on a signal."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

SIGNAL_S = 1.0
"""Longest single call of `ray.wait` in seconds. No signal reaches this process during the call."""


_waits: dict[int, tuple[str, Callable[[], Iterable[str]], float, float]] = {}


@contextmanager
def waiting(doing: str, names: Callable[[], Iterable[str]], limit_s: float) -> Generator[None]:
    """List this wait in `who_waits` for the time of the block.

    Args:
        doing: activity of the workers.
        names: returns the names of the workers that have not answered yet.
        limit_s: deadline of the wait in seconds.
    """
    wait = doing, names, time.monotonic(), limit_s
    _waits[id(wait)] = wait
    try:
        yield
    finally:
        del _waits[id(wait)]


def who_waits() -> list[str]:
    """Return a line for each wait of this process that goes on now."""
    now = time.monotonic()
    return [
        f"for {', '.join(sorted(set(names()))) or 'nobody'}, {doing}: {now - since:.0f} s of at most {limit:g} s"
        for doing, names, since, limit in list(_waits.values())
    ]


def print_stacks_on_signal() -> None:
    """Make this process print the stacks of all its threads on SIGUSR2, even inside a call that hangs."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)

"""Waits that can be listed, and the stacks of those who wait."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

SIGNAL_S = 1.0
"""Longest single call of `ray.wait`: while it waits, no signal reaches this process."""


_waits: dict[int, tuple[str, Callable[[], Iterable[str]], float, float]] = {}


@contextmanager
def waiting(doing: str, names: Callable[[], Iterable[str]], limit_s: float) -> Generator[None]:
    """Makes a wait known to `who_waits`.

    Args:
        doing: what is waited for.
        names: of those who are waited for, asked when somebody wants to know.
        limit_s: seconds after which the wait ends by itself.
    """
    wait = doing, names, time.monotonic(), limit_s
    _waits[id(wait)] = wait
    try:
        yield
    finally:
        del _waits[id(wait)]


def who_waits() -> list[str]:
    """A line for each wait of this process that goes on now."""
    now = time.monotonic()
    return [
        f"for {', '.join(sorted(set(names()))) or 'nobody'}, {doing}: {now - since:.0f} s of at most {limit:g} s"
        for doing, names, since, limit in list(_waits.values())
    ]


def print_stacks_on_signal() -> None:
    """Have this process print the stacks of all its threads when it gets SIGUSR2, whatever it is doing."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)

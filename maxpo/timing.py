"""Wall-clock times of the stages of a step."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def timed(timing: dict[str, float], name: str) -> Generator[None]:
    """Add the seconds that the block takes to `timing[name]`."""
    started = time.perf_counter()
    yield
    timing[name] = timing.get(name, 0.0) + time.perf_counter() - started

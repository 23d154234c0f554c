"""Pools of processes that can be killed: what the verifiers' and the environments' have in common."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from pebble import ProcessPool

from maxpo.runtime.background import Background

POOLS = 4
"""Pools that may break one after the other before it is an error."""


def new_pool(workers: int, initializer: Callable[[Any], None], settings: Any) -> ProcessPool:
    """A pool whose processes run `initializer(settings)` first."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPool(max_workers=workers, context=spawn, initializer=initializer, initargs=[settings])


def stop(pool: ProcessPool) -> Background:
    """Kill the processes of a pool, beside what goes on: the threads of one that is broken may never end."""

    def end() -> None:
        # pebble asks its processes to end, and waits for what one that is stopped never gives back.
        for process in list(pool._pool_manager.worker_manager.workers.values()):  # pyright: ignore
            process.kill()
        pool.stop()
        pool.join()

    return Background(end)


def forget_token() -> None:
    """Runs first in such a process: what it judges or plays with may read its environment."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)

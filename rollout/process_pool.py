"""Pools of processes that can be killed, for verifiers and for environments."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import TypeVar

from pebble import ProcessPool

from maxpo.runtime.background import Background

T = TypeVar("T")

POOLS = 4
"""Number of pools that may break one after the other before a run fails."""


def new_pool(workers: int, initializer: Callable[[T], None], settings: T) -> ProcessPool:
    """Return a pool whose processes run `initializer(settings)` first."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPool(max_workers=workers, context=spawn, initializer=initializer, initargs=[settings])


def stop(pool: ProcessPool) -> Background:
    """Kill the processes of a pool in the background, because the threads of a broken pool may never end."""

    def end() -> None:
        # pebble asks its processes to end, and then waits for locks that a stopped process never releases.
        for process in list(pool._pool_manager.worker_manager.workers.values()):  # pyright: ignore
            process.kill()
        pool.stop()
        pool.join()

    return Background(end)


def forget_token() -> None:
    """Remove the cluster's token from the environment variables, which users' code in this process may read."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)

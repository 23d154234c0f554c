"""Scoring beside sampling, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from maxpo.types import Group, ScoredGroup
from rollout.scoring.verifier_pool import RewardPool


class _Job(NamedTuple):
    group: Group
    done: Callable[[ScoredGroup], None]


class Scorer:
    """Scores groups as they arrive. All groups that wait are scored together."""

    def __init__(self, rewards: RewardPool, failed: Callable[[BaseException], None]) -> None:
        """Start the thread.

        Args:
            rewards: The verifiers.
            failed: Called, in the thread, with the error of a scoring.
        """
        self._rewards, self._failed = rewards, failed
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon, so that a verifier that hangs does not keep the process.
        threading.Thread(target=self._work, name="scoring", daemon=True).start()

    def submit(self, group: Group, done: Callable[[ScoredGroup], None]) -> None:
        """Score a group, and call `done` with it in the thread."""
        self._jobs.put(_Job(group, done))

    def stop(self) -> None:
        """End the thread after what it is doing."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs: list[_Job | None] = [job]
            try:
                while True:
                    jobs.append(self._jobs.get_nowait())
            except Empty:
                pass
            wanted = [job for job in jobs if job is not None]
            try:
                scored = self._rewards.judge(self._rewards.score([job.group for job in wanted]))
            except BaseException as error:  # told to the thread that serves, which raises it
                self._failed(error)
                continue
            for job, group in zip(wanted, scored, strict=True):
                job.done(group)
            if len(wanted) < len(jobs):
                return

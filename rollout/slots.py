"""How many sequences each worker holds, and which worker gets the next group."""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from rollout.fleet import Fleet
from rollout.protocols import WorkerHandle


@dataclass(slots=True)
class _Worker:
    """A worker that serves, or that served."""

    name: str
    actor: WorkerHandle
    held: int = 0
    """Sequences that the worker holds."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one group at a worker."""

    worker: _Worker
    order: int
    size: int
    before: int
    """Sequences that the worker held before."""

    @property
    def name(self) -> str:
        """Name of the worker."""
        return self.worker.name

    @property
    def actor(self) -> WorkerHandle:
        """Handle of the worker."""
        return self.worker.actor


class Slots:
    """Room for groups at the serving workers. The worker with the fewest sequences comes first.

    A worker gets a further group while it holds no more than its limit of sequences: what fills its engine, and one
    group to follow. A heap finds the worker, so `take` costs about the same for ten workers as for a thousand.
    """

    def __init__(self, fleet: Fleet, capacity: int, overcommit: float) -> None:
        """Give room to each worker of `fleet` that serves, now or later.

        Args:
            fleet: The workers.
            capacity: Sequences that fill an engine.
            overcommit: The limit of a worker, in multiples of `capacity`.
        """
        self._fleet, self._capacity, self._limit = fleet, capacity, overcommit * capacity
        self._workers: list[_Worker] = []
        self._heap: list[tuple[int, int]] = []
        """Sequences held, and number of the worker. Entries with another number of sequences are out of date."""
        self._seen = (-1, -1)
        self._usage = _Usage(capacity)

    def take(self, size: int) -> Slot | None:
        """Return room for a group of `size` sequences. None: there is none."""
        self._add_new_workers()
        while self._heap:
            held, order = self._heap[0]
            worker = self._workers[order]
            if held != worker.held or self._fleet.serving.get(worker.name) is not worker.actor:
                heappop(self._heap)
            elif held >= self._limit + size:
                return None
            else:
                heapreplace(self._heap, (held + size, order))
                self._hold(worker, held + size)
                return Slot(worker, order, size, held)
        return None

    def give_back(self, slot: Slot) -> None:
        """Free the room of a group that has ended, well or not."""
        self._hold(slot.worker, slot.worker.held - slot.size)
        heappush(self._heap, (slot.worker.held, slot.order))
        if len(self._heap) > 4 * len(self._workers):  # most entries are out of date
            self._heap = [(worker.held, order) for order, worker in enumerate(self._workers)]
            heapify(self._heap)

    def usage(self) -> tuple[float, float]:
        """Return the share of time without any group and how full the engines were, since the last call.

        Both are means over the serving workers, from 0 to 1.
        """
        return self._usage.shares(len(self._fleet.serving))

    def _hold(self, worker: _Worker, held: int) -> None:
        self._usage.change(worker.held, held)
        worker.held = held

    def _add_new_workers(self) -> None:
        """Make room at the workers that serve now and did not serve before."""
        # A new worker raises the number of serving workers, unless another one left. Then `restarts` rises.
        seen = self._fleet.restarts, len(self._fleet.serving)
        if seen == self._seen:
            return
        self._seen = seen
        known = {worker.name: worker.actor for worker in self._workers}
        for name, actor in self._fleet.serving.items():
            if known.get(name) is not actor:
                heappush(self._heap, (0, len(self._workers)))
                self._workers.append(_Worker(name, actor))


class _Usage:
    """Integrals over time: workers with at least one group, and places of engines that are taken."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._busy, self._filled = 0, 0
        self._busy_s, self._filled_s = 0.0, 0.0
        self._began = self._last = time.monotonic()

    def change(self, before: int, after: int) -> None:
        """Take note that a worker holds another number of sequences from now on."""
        self._integrate()
        self._busy += (after > 0) - (before > 0)
        self._filled += min(after, self._capacity) - min(before, self._capacity)

    def shares(self, workers: int) -> tuple[float, float]:
        """Return both shares, for this number of workers, and begin anew."""
        self._integrate()
        seconds = max(self._last - self._began, 1e-9) * max(workers, 1)
        shares = 1.0 - min(1.0, self._busy_s / seconds), min(1.0, self._filled_s / seconds / self._capacity)
        self._busy_s, self._filled_s, self._began = 0.0, 0.0, self._last
        return shares

    def _integrate(self) -> None:
        now = time.monotonic()
        self._busy_s += (now - self._last) * self._busy
        self._filled_s += (now - self._last) * self._filled
        self._last = now

"""Slots for groups at the workers: how many groups each worker holds."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from rollout.fleet import Fleet
from rollout.protocols import WorkerHandle


class Slot(NamedTuple):
    """Permission to give one group to a worker."""

    held: int
    """Groups that the worker holds before this one."""
    order: int
    """Number of the worker. No two slots share both numbers."""
    name: str
    actor: WorkerHandle


class Slots:
    """The slots of all serving workers, up to a limit for each. The worker with the fewest groups comes first.

    A heap finds the worker, so `take` costs about the same for ten workers as for a thousand.
    """

    def __init__(self, fleet: Fleet, per_worker: int) -> None:
        """Give `per_worker` slots to each worker of `fleet` that serves, now or later."""
        self._fleet, self._per_worker = fleet, per_worker
        self._free: list[Slot] = []
        """A heap. A worker that holds h groups has the slots h, h + 1, and so on up to the limit."""
        self._load: list[int] = []
        """Groups held, by `Slot.order`."""
        self._known: dict[str, WorkerHandle] = {}
        self._seen = (-1, -1)

    def take(self) -> Slot | None:
        """Return the slot of the next group. None: all are taken."""
        self._add_new_workers()
        while self._free:
            slot = heappop(self._free)
            if self._fleet.serving.get(slot.name) is slot.actor:
                self._load[slot.order] += 1
                return slot
        return None

    def give_back(self, slot: Slot) -> None:
        """Free the slot of a group that has ended, well or not."""
        self._load[slot.order] -= 1
        heappush(self._free, slot._replace(held=self._load[slot.order]))

    def _add_new_workers(self) -> None:
        """Make slots for the workers that serve now and did not serve before."""
        # A new worker raises the number of serving workers, unless another one left. Then `restarts` rises.
        seen = self._fleet.restarts, len(self._fleet.serving)
        if seen == self._seen:
            return
        self._seen = seen
        for name, actor in self._fleet.serving.items():
            if self._known.get(name) is not actor:
                self._known[name] = actor
                for held in range(self._per_worker):
                    heappush(self._free, Slot(held, len(self._load), name, actor))
                self._load.append(0)

"""How many groups each worker holds."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, NamedTuple

from rollout.fleet import Fleet


class Slot(NamedTuple):
    """Room for one group at a worker."""

    held: int
    """Groups that the worker has before this one is taken."""
    order: int
    """Of the workers; no two places share both."""
    name: str
    actor: Any


class Slots:
    """Where the next group goes: to the worker that serves and has the fewest, up to a limit.

    Finding it takes no longer for a thousand workers than for ten.
    """

    def __init__(self, fleet: Fleet, per_worker: int) -> None:
        """Give each worker of `fleet` that serves, now or later, so many places."""
        self._fleet, self._per_worker = fleet, per_worker
        self._free: list[Slot] = []
        """A heap. Of a worker that holds h groups it has the places h, h + 1, and so on up to the limit."""
        self._load: list[int] = []
        """Groups held, by `Slot.order`."""
        self._known: dict[str, Any] = {}
        self._seen = (-1, -1)

    def take(self) -> Slot | None:
        """The place of the next group; None: all are taken."""
        self._welcome()
        while self._free:
            place = heappop(self._free)
            if self._fleet.serving.get(place.name) is place.actor:
                self._load[place.order] += 1
                return place
        return None

    def give_back(self, place: Slot) -> None:
        """The group of this place has ended, in whatever way."""
        self._load[place.order] -= 1
        heappush(self._free, place._replace(held=self._load[place.order]))

    def _welcome(self) -> None:
        """Slots for those who serve only now."""
        # Nobody comes without the second number going up, unless somebody left, and then the first does.
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

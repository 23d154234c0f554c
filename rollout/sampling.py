"""The event loop of all rollout workers: requests for groups go out, groups and other events come in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from typing import NamedTuple

import ray
from ray import ObjectRef

from maxpo.errors import RemoteError
from maxpo.runtime.ray_calls import failure
from maxpo.runtime.waits import SIGNAL_S, waiting
from maxpo.types import Group
from rollout.fleet import Fleet, is_loss
from rollout.protocols import WorkerHandle
from rollout.slots import Slot, Slots

GRACE_S = 30.0
"""Seconds beyond a worker's own limit of time, so that the worker's error, which has more detail, comes first."""


class Request(NamedTuple):
    """A group that is wanted."""

    urgent: bool
    """True for evaluations: nothing else is handed out until all of these are done."""
    number: int
    """Requests are handed out in the order of their numbers."""
    size: int
    """Number of completions."""
    start: Callable[[WorkerHandle, float], ObjectRef[Group]]
    """Asks a worker for the group, with a limit of time in seconds."""
    done: Callable[[Group], None]
    """Gets the group."""


class _Call(NamedTuple):
    """A running call of a worker."""

    request: Request
    ref: ObjectRef[Group]
    slot: Slot
    limit_s: float
    deadline: float


class Sampling:
    """Keeps the workers busy with the requests, while one thread serves. Lost workers' groups are sampled by others."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        capacity: int,
        overcommit: float,
        limit_s: float,
        await_serving: Callable[[], None],
    ) -> None:
        """Start without requests.

        Args:
            fleet: The workers.
            capacity: Sequences that fill an engine.
            overcommit: Sequences that a worker holds, in multiples of `capacity`.
            limit_s: Seconds that a group may take once the engine has places for it.
            await_serving: Returns when a worker serves.
        """
        self._fleet, self._capacity, self._limit_s = fleet, capacity, limit_s
        self._await_serving = await_serving
        self._slots = Slots(fleet, capacity, overcommit)
        self._waiting: list[tuple[bool, int, Request]] = []
        """A heap: urgent requests first, then by number."""
        self._running: dict[Future[Group], _Call] = {}
        self._urgent = 0
        """Urgent requests that are not done."""
        # Everything that happens elsewhere comes as a function to call. Calls of workers report their end here too:
        # `ray.wait` would look at all running calls each time that one ends.
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._looked = 0.0
        self.resampled = 0
        """Number of groups that were sampled again because their worker was lost."""

    def submit(self, request: Request) -> None:
        """Add a request."""
        self._urgent += request.urgent
        self._queue(request)

    def _queue(self, request: Request) -> None:
        heappush(self._waiting, (not request.urgent, request.number, request))

    def post(self, event: Callable[[], None]) -> None:
        """Have `serve` call a function. Any thread may post."""
        self._events.put(event)

    @property
    def idle(self) -> bool:
        """True if nothing is sampled: no request is unfinished, or no worker has the weights."""
        return not self._running and not (self._waiting and self._fleet.serving)

    @property
    def waiting(self) -> int:
        """Number of requests that no worker has yet."""
        return len(self._waiting)

    def serve(self, until: Callable[[], bool], *, may_send_weights: bool) -> None:
        """Hand out requests and handle events until the condition holds. It is asked first, and after each event.

        Args:
            until: The condition.
            may_send_weights: False while the learner is busy. If no worker has the weights, requests wait.

        Raises:
            RemoteError: A request failed or was not answered in time.
            RunError: See `Fleet.lost`. Events may raise too.
        """
        with waiting("sampling", lambda: [call.slot.name for call in self._running.values()], self._limit_s):
            behind = self._events.qsize()
            while not until():
                # What has happened comes first: among it may be the loss of groups that go before those that wait.
                if behind <= 0 and self._waiting:
                    self._hand_out(may_send_weights)
                    behind = self._events.qsize()
                try:
                    event = self._events.get(timeout=SIGNAL_S)
                except Empty:
                    event = None
                if self._running:
                    # Also while groups keep coming, because a hanging worker may not be the one that sends them.
                    self._fleet.check_health()
                    self._check_deadlines()
                if event is not None:
                    behind -= 1
                    event()

    def abandon(self) -> None:
        """Forget all requests. The workers stop working on them."""
        for future, call in self._running.items():
            ray.cancel(call.ref)
            future.cancel()
            self._slots.give_back(call.slot)
        self._waiting, self._running, self._urgent = [], {}, 0

    def usage(self) -> tuple[float, float]:
        """Return the shares of idle workers and of taken places since the last call, see `Slots.usage`."""
        return self._slots.usage()

    def _hand_out(self, may_send_weights: bool) -> None:
        """Fill the workers, the emptiest first."""
        self._fleet.poll()
        if not self._running and may_send_weights:
            self._await_serving()
        while self._waiting:
            request = self._waiting[0][2]
            if self._urgent and not request.urgent:
                return
            slot = self._slots.take(request.size)
            if slot is None:
                return
            heappop(self._waiting)
            # A group that waits in the engine for the groups before it has their time too.
            limit_s = self._limit_s * max(1, math.ceil((slot.before + slot.size) / self._capacity))
            ref = request.start(slot.actor, limit_s)
            future = ref.future()
            deadline = time.monotonic() + limit_s + GRACE_S
            self._running[future] = _Call(request, ref, slot, limit_s + GRACE_S, deadline)
            future.add_done_callback(lambda future: self.post(partial(self._ended, future)))

    def _ended(self, future: Future[Group]) -> None:
        """Take the group of a call. If its worker was lost, the request waits again."""
        call = self._running.pop(future, None)
        if call is None:  # abandoned
            return
        self._slots.give_back(call.slot)
        try:
            group = future.result()
        except Exception as error:
            if not is_loss(error):
                raise failure(call.slot.name, "generating", error) from error
            self._fleet.lost(call.slot.name, call.slot.actor, error)
            self._queue(call.request)
            self.resampled += 1
        else:
            self._urgent -= call.request.urgent
            call.request.done(group)

    def _check_deadlines(self) -> None:
        """Raise if a call is late. Looks once a second."""
        now = time.monotonic()
        if now - self._looked < SIGNAL_S:
            return
        self._looked = now
        # An answer may have been on time and not yet seen, because the main thread was busy or this process paused.
        late = [call for future, call in self._running.items() if call.deadline <= now and not future.done()]
        if late:
            names = ", ".join(sorted({call.slot.name for call in late}))
            raise RemoteError(f"{names} did not return a group within {min(c.limit_s for c in late):g} s")

"""One call of `RolloutPool.generate`: groups for many prompts, sampled by all workers at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ray import ObjectRef

from maxpo.errors import RemoteError
from maxpo.runtime.ray_calls import failure
from maxpo.runtime.waits import SIGNAL_S, waiting
from maxpo.types import Group, Prompt
from rollout.fleet import Fleet, is_loss
from rollout.protocols import WorkerHandle
from rollout.slots import Slot, Slots


class _Call(NamedTuple):
    """A running call of a worker."""

    prompt_index: int
    """Index of the prompt in the list of all prompts."""
    slot: Slot
    deadline: float


class Generation:
    """Keeps all workers busy until each prompt has its group. Groups of lost workers are sampled by others."""

    def __init__(
        self,
        fleet: Fleet,
        prompts: Sequence[Prompt],
        start: Callable[[WorkerHandle, int, Prompt], ObjectRef[Group]],
        *,
        groups_per_worker: int,
        limit_s: float,
        await_serving: Callable[[], None],
    ) -> None:
        """Prepare the calls. `run` makes them.

        Args:
            fleet: The workers.
            prompts: One group is sampled for each.
            start: Asks a worker for the group of a prompt, given its index.
            groups_per_worker: Most groups that a worker holds.
            limit_s: Seconds that a call may take.
            await_serving: Returns when a worker serves.
        """
        self._fleet, self._prompts, self._start = fleet, prompts, start
        self._limit_s, self._await_serving = limit_s, await_serving
        self._slots = Slots(fleet, groups_per_worker)
        self._todo = deque(range(len(prompts)))
        # In the order of the deadlines, since all calls have the same time.
        self._running: dict[Future[Group], _Call] = {}
        # Calls report their end here. `ray.wait` would look at all running calls each time that one ends.
        self._ended: SimpleQueue[Future[Group]] = SimpleQueue()
        self.resampled = 0
        """Number of groups that were sampled again because their worker was lost."""

    def run(self, on_group: Callable[[Group], None]) -> list[Group]:
        """Return one group for each prompt, in order. See `RolloutPool.generate` for arguments and errors."""
        groups: dict[int, Group] = {}
        while len(groups) < len(self._prompts):
            if self._todo:
                self._dispatch()
            with waiting("sampling", lambda: [call.slot.name for call in self._running.values()], self._limit_s):
                future = self._next_ended()
            call = self._running.pop(future)
            self._slots.give_back(call.slot)
            group = self._result(future, call)
            if group is not None:
                groups[call.prompt_index] = group
                on_group(group)
        return [groups[index] for index in range(len(self._prompts))]

    def _dispatch(self) -> None:
        """Fill the workers, the emptiest first."""
        self._fleet.poll()
        if not self._running:
            self._await_serving()
        while self._todo and (slot := self._slots.take()):
            index = self._todo.popleft()
            future = self._start(slot.actor, index, self._prompts[index]).future()
            self._running[future] = _Call(index, slot, time.monotonic() + self._limit_s)
            future.add_done_callback(self._ended.put)

    def _next_ended(self) -> Future[Group]:
        """Wait for the next call that ends.

        Raises:
            RemoteError: A call has passed its deadline.
        """
        while True:
            earliest = next(call.deadline for call in self._running.values())
            try:
                future = self._ended.get(timeout=max(0.0, min(earliest - time.monotonic(), SIGNAL_S)))
            except Empty:
                future = None
            # Also while groups keep coming, because a hanging worker may not be the one that sends them.
            self._fleet.check_health()
            if future is not None:
                return future
            now = time.monotonic()
            late = sorted({call.slot.name for call in self._running.values() if call.deadline <= now})
            if late:
                raise RemoteError(f"{', '.join(late)} did not return a group within {self._limit_s:g} s")

    def _result(self, future: Future[Group], call: _Call) -> Group | None:
        """Return the group of a call that has ended. None: its worker was lost, and the prompt waits again."""
        try:
            return future.result()
        except Exception as error:
            if not is_loss(error):
                raise failure(call.slot.name, "generating", error) from error
            self._fleet.lost(call.slot.name, call.slot.actor, error)
            self._todo.appendleft(call.prompt_index)
            self.resampled += 1
            return None

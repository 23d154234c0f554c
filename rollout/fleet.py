"""The actors of the rollout workers: which of them serve, and the replacement of dead ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ray
from ray import ObjectRef

from maxpo.config import Config
from maxpo.errors import RunError
from maxpo.runtime.output import output_file
from maxpo.runtime.ray_calls import actor_is_lost, failure, ready_of, told, wait_for
from maxpo.runtime.waits import waiting
from rollout.protocols import WorkerHandle
from rollout.worker import EngineLostError


def is_loss(error: BaseException | None) -> bool:
    """Return True if a remote call failed because its actor or the actor's engine is gone."""
    return actor_is_lost(error) or isinstance(getattr(error, "cause", None), EngineLostError)


class _Start(NamedTuple):
    """The start of a replacement."""

    actor: WorkerHandle
    pid: ObjectRef[int]
    deadline: float


class _Check(NamedTuple):
    """The state of the health checks of one worker."""

    answer: ObjectRef[None] | None
    """The running check, or None between two checks."""
    since: float
    """Time at which the check was sent, or at which the next one is due."""


class Fleet:
    """Named actors. A lost actor is replaced in the background, under the same name and with the same options.

    A replacement that has started is in `ready`. It serves once it has weights (`admit`). Only `poll` with a timeout,
    `finish_start`, `wait_for_one`, `wait_for_all` and `shutdown` wait.
    """

    def __init__(
        self,
        create: Callable[[int], WorkerHandle],
        config: Config,
        log_folder: Path | None,
        count: int | None = None,
    ) -> None:
        """Create the actors. `begin_start` and `finish_start` make them ready.

        Args:
            create: Creates the actor of the worker with this number.
            config: Settings. The timeouts and the allowed number of losses are used.
            log_folder: Folder with the actors' output, for messages. None: it is in Ray's logs.
            count: Number of actors. None: `rollout.workers`.
        """
        self._create, self._config, self._log_folder = create, config.rollout, log_folder
        self._start_timeout_s = config.run.start_timeout_s
        self._health_interval_s = config.rollout.health_timeout_s / 6
        self._numbers = {f"rollout worker {i}": i for i in range(config.rollout.workers if count is None else count)}
        self.serving = {name: create(i) for name, i in self._numbers.items()}
        self.ready: dict[str, WorkerHandle] = {}
        self.restarts = 0
        self._starting: dict[str, _Start] = {}
        self._pids: dict[str, int] = {}
        self._health: dict[str, _Check] = {}
        self._checked = 0.0
        self._losses: deque[tuple[float, str]] = deque()
        self._version: int | None = None

    @property
    def started(self) -> dict[str, WorkerHandle]:
        """Workers whose engines run, with weights or without, by name."""
        return self.serving | self.ready

    def begin_start(self, version: int | None) -> None:
        """Start all engines without waiting. `version`: see `RolloutWorker.start`."""
        self._version = version
        self._first = {name: actor.start.remote(version) for name, actor in self.serving.items()}

    def finish_start(self) -> None:
        """Wait until all engines are ready. A worker that dies meanwhile is not replaced, because it never worked."""
        limit = self._start_timeout_s
        self._pids |= wait_for(self._first, timeout_s=limit, doing="starting its engine")

    def lost(self, name: str, actor: WorkerHandle, cause: BaseException) -> None:
        """Count the loss of a worker and replace it. Does nothing if `actor` was replaced already.

        Raises:
            RunError: More than `rollout.max_restarts` losses within `rollout.restart_window_s`.
        """
        if self._current(name) is not actor:
            return
        now, window = time.monotonic(), self._config.restart_window_s
        self._losses.append((now, f"{name}: {told(cause, output_file(self._log_folder, name), self._pids.get(name))}"))
        while self._losses[0][0] < now - window:
            self._losses.popleft()
        if len(self._losses) > self._config.max_restarts:
            raise RunError(
                f"{len(self._losses)} rollout workers were lost within {window:g} s, and rollout.max_restarts = "
                f"{self._config.max_restarts}:\n{self._losses_in_words()}"
            )
        self.replace(name)

    def replace(self, name: str) -> None:
        """End a worker and start another one with the same name and options."""
        current = self._current(name)
        assert current is not None
        ray.kill(current)  # pyright: ignore[reportArgumentType]
        self.serving.pop(name, None)
        self.ready.pop(name, None)
        actor = self._create(self._numbers[name])
        deadline = time.monotonic() + self._start_timeout_s
        self._pids.pop(name, None)
        self._health.pop(name, None)
        self._starting[name] = _Start(actor, actor.start.remote(self._version), deadline)
        self.restarts += 1

    def replace_all(self) -> None:
        """Replace every worker, whatever its state."""
        for name in self._numbers:
            self.replace(name)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in the replacements that have started. Waits at most `timeout_s` seconds for the first of them.

        Raises:
            RunError: See `lost`. A start that fails, or takes longer than `run.start_timeout_s`, is a loss.
        """
        refs = [start.pid for start in self._starting.values()]
        if not refs:
            return
        ready_of(refs, timeout=timeout_s)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for name, start in list(self._starting.items()):
            if start.pid in done:
                self._finish(name, start)
            elif time.monotonic() > start.deadline:
                limit = self._start_timeout_s
                self.lost(name, start.actor, TimeoutError(f"it did not start its engine within {limit:g} s"))

    def _finish(self, name: str, start: _Start) -> None:
        """Take in a replacement whose start has ended, well or not."""
        try:
            self._pids[name] = ray.get(start.pid)
        except Exception as error:
            # The same start succeeded before, so any error is worth another try, within the limit on losses.
            self.lost(name, start.actor, getattr(error, "cause", None) or error)
            return
        del self._starting[name]
        # Weights of the model folder have their version from the start. All others must be sent.
        (self.ready if self._version is None else self.serving)[name] = start.actor

    def check_health(self) -> None:
        """Ask every serving worker for a sign of life, at intervals. A worker that gives none in time is lost.

        Never waits.

        Raises:
            RunError: See `lost`.
        """
        config, now = self._config, time.monotonic()
        if now - self._checked < min(1.0, self._health_interval_s):
            return
        # After a pause of this process an answer may have been on time and not yet seen.
        paused = now - self._checked > config.health_timeout_s
        self._checked = now
        for name, actor in list(self.serving.items()):
            check = self._health.setdefault(name, _Check(None, now + config.health_timeout_s))
            if check.answer is None:
                if now >= check.since:
                    self._health[name] = _Check(actor.sign_of_life.remote(), now)
            elif ray.wait([check.answer], timeout=0)[0]:
                self._take_answer(name, actor, check.answer, now)
            elif paused:
                self._health[name] = check._replace(since=now)
            elif now - check.since > config.health_timeout_s:
                self.lost(name, actor, TimeoutError(f"no sign of life for {now - check.since:.0f} s"))

    def _take_answer(self, name: str, actor: WorkerHandle, answer: ObjectRef[None], now: float) -> None:
        """Read the answer to a health check, and plan the next check."""
        try:
            ray.get(answer)
        except Exception as error:
            if not is_loss(error):
                raise failure(name, "giving a sign of life", error) from error
            self.lost(name, actor, error)
        else:
            self._health[name] = _Check(None, now + self._health_interval_s)

    def wait_for_one(self) -> None:
        """Wait until an engine runs, with weights or without.

        Raises:
            RunError: No engine does within `run.start_timeout_s`. See also `lost`.
        """
        self._wait(lambda: bool(self.started))

    def wait_for_all(self) -> None:
        """Wait until every engine runs. Raises as `wait_for_one` does."""
        self._wait(lambda: not self._starting)

    def _wait(self, enough: Callable[[], bool]) -> None:
        limit = self._start_timeout_s
        end = time.monotonic() + limit
        with waiting("starting its engine again", lambda: self._starting, limit):
            while not enough():
                if time.monotonic() > end:
                    raise RunError(
                        f"{', '.join(self._starting)} did not start within run.start_timeout_s = {limit:g} s; "
                        f"if a node was lost, its resources may be missing:\n{self._losses_in_words()}"
                    )
                self.poll(1.0)

    def admit(self) -> None:
        """Let the workers in `ready` serve, because they have the current weights."""
        self.serving |= self.ready
        self.ready = {}

    def shutdown(self) -> None:
        """End the engines, then the actors. An actor that is still starting its engine would not answer."""
        refs = [actor.shutdown.remote() for name, actor in self.started.items() if name in self._pids]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=10.0)
        for actor in [*self.started.values(), *(start.actor for start in self._starting.values())]:
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def _losses_in_words(self) -> str:
        return "\n".join(text for _, text in self._losses)

    def _current(self, name: str) -> WorkerHandle | None:
        start = self._starting.get(name)
        return start.actor if start else self.started.get(name)

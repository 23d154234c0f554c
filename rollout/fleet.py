"""The rollout workers' actors: which of them serve, and the replacement of those that died."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from maxpo.config import RolloutConfig
from maxpo.errors import RunError
from maxpo.runtime.ray_calls import actor_is_lost, failure, ready_of, told, wait_for
from maxpo.runtime.waits import waiting
from rollout.worker import EngineLostError


def is_loss(error: BaseException | None) -> bool:
    """Whether a remote call failed because its actor or the actor's engine is gone, not because of what was asked."""
    return actor_is_lost(error) or isinstance(getattr(error, "cause", None), EngineLostError)


class Fleet:
    """Named actors. One that is lost is replaced in the background, under its name and with the same options.

    A replacement that has started is `ready`; it serves once it was given weights (`admit`). Nothing here waits
    but `poll` and `wait_for_one`.
    """

    def __init__(
        self, create: Callable[[int], Any], count: int, config: RolloutConfig, log_folder: Path | None
    ) -> None:
        """Create the actors; `start` and `finish_start` make them ready.

        Args:
            create: makes the actor of the worker with this number.
            count: how many.
            config: time to start, and how many losses are too many.
            log_folder: where the actors' output is found after the run, for messages.
        """
        self._create, self._config, self._log_folder = create, config, log_folder
        self._numbers = {f"rollout worker {i}": i for i in range(count)}
        self.serving = {name: create(i) for name, i in self._numbers.items()}
        self.ready: dict[str, Any] = {}
        self.restarts = 0
        self._starting: dict[str, tuple[Any, Any, float]] = {}
        self._pids: dict[str, int] = {}
        self._health: dict[str, tuple[Any, float]] = {}
        """By name: a question and when it was asked, or None and when to ask next."""
        self._checked = 0.0
        self._losses: deque[tuple[float, str]] = deque()
        self._version: int | None = None

    @property
    def started(self) -> dict[str, Any]:
        """All whose engines run, with weights or without."""
        return self.serving | self.ready

    def begin_start(self, version: int | None) -> None:
        """Start all engines without waiting. `version`: see `RolloutWorker.start`."""
        self._version = version
        self._first = {name: actor.start.remote(version) for name, actor in self.serving.items()}

    def finish_start(self) -> None:
        """Wait until all engines are ready. A worker that dies here is not replaced: it never worked."""
        limit = self._config.start_timeout_s
        self._pids |= wait_for(self._first, timeout_s=limit, doing="starting its engine")

    def lost(self, name: str, actor: Any, cause: BaseException) -> None:
        """Count the loss of a worker and replace it. Does nothing where `actor` was replaced already.

        Raises:
            RunError: more than `rollout.max_restarts` losses within `rollout.restart_window_s`.
        """
        if self._current(name) is not actor:
            return
        now, window = time.monotonic(), self._config.restart_window_s
        self._losses.append((now, f"{name}: {told(cause, self._log_folder, self._pids.get(name))}"))
        while self._losses[0][0] < now - window:
            self._losses.popleft()
        if len(self._losses) > self._config.max_restarts:
            losses = "\n".join(text for _, text in self._losses)
            raise RunError(
                f"{len(self._losses)} rollout workers were lost within {window:g} s, and rollout.max_restarts = "
                f"{self._config.max_restarts}:\n{losses}"
            )
        self.replace(name)

    def replace(self, name: str) -> None:
        """End a worker and start another in its place, which gets its name and options."""
        ray.kill(self._current(name))
        self.serving.pop(name, None)
        self.ready.pop(name, None)
        actor = self._create(self._numbers[name])
        end = time.monotonic() + self._config.start_timeout_s
        self._pids.pop(name, None)
        self._health.pop(name, None)
        self._starting[name] = actor, actor.start.remote(self._version), end
        self.restarts += 1

    def replace_all(self) -> None:
        """Replace every worker, in whatever state it is."""
        for name in self._numbers:
            self.replace(name)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in the replacements that have started; waits for the first of them at most `timeout_s` seconds.

        Raises:
            RunError: see `lost`; a start that fails, or takes longer than `rollout.start_timeout_s`, is a loss.
        """
        refs = [ref for _, ref, _ in self._starting.values()]
        if not refs:
            return
        ready_of(refs, timeout=timeout_s)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for name, (actor, ref, end) in list(self._starting.items()):
            if ref not in done:
                if time.monotonic() > end:
                    limit = self._config.start_timeout_s
                    self.lost(name, actor, TimeoutError(f"it did not start its engine within {limit:g} s"))
                continue
            try:
                self._pids[name] = ray.get(ref)
            except Exception as error:
                # The same start succeeded before, so whatever it was, it is worth another try, within the limit.
                self.lost(name, actor, getattr(error, "cause", None) or error)
                continue
            del self._starting[name]
            # Weights of the model folder have their version from the start; all others must be sent.
            (self.ready if self._version is None else self.serving)[name] = actor

    def check_health(self) -> None:
        """Ask every serving worker for a sign of life, at intervals; one that gives none in time is lost. Never waits.

        Raises:
            RunError: see `lost`.
        """
        config, now = self._config, time.monotonic()
        if now - self._checked < min(1.0, config.health_interval_s):
            return
        slept = now - self._checked > config.health_timeout_s  # this process did not run, or had other things to do
        self._checked = now
        for name, actor in list(self.serving.items()):
            question, since = self._health.setdefault(name, (None, now + config.health_grace_s))
            if question is None:
                if now >= since:
                    self._health[name] = actor.sign_of_life.remote(), now
            elif ray.wait([question], timeout=0)[0]:
                try:
                    ray.get(question)
                except Exception as error:
                    if not is_loss(error):
                        raise failure(name, "giving a sign of life", error) from error
                    self.lost(name, actor, error)
                else:
                    self._health[name] = None, now + config.health_interval_s
            elif slept:
                self._health[name] = question, now
            elif now - since > config.health_timeout_s:
                self.lost(name, actor, TimeoutError(f"no sign of life for {now - since:.0f} s"))

    def wait_for_one(self) -> None:
        """Wait until an engine runs, with weights or without.

        Raises:
            RunError: none does within `rollout.start_timeout_s`; see also `lost`.
        """
        self._wait(lambda: bool(self.started))

    def wait_for_all(self) -> None:
        """Wait until every engine runs; raises as `wait_for_one`."""
        self._wait(lambda: not self._starting)

    def _wait(self, enough: Callable[[], bool]) -> None:
        limit = self._config.start_timeout_s
        end = time.monotonic() + limit
        with waiting("starting its engine again", lambda: self._starting, limit):
            while not enough():
                if time.monotonic() > end:
                    losses = "\n".join(text for _, text in self._losses)
                    raise RunError(
                        f"{', '.join(self._starting)} did not start within rollout.start_timeout_s = {limit:g} s; "
                        f"where a node was lost, there may be no room for it:\n{losses}"
                    )
                self.poll(1.0)

    def admit(self) -> None:
        """What is ready has got the current weights, and serves."""
        self.serving |= self.ready
        self.ready = {}

    def shutdown(self) -> None:
        """End the actors, and first the engines of those that have one."""
        refs = [actor.shutdown.remote() for actor in self.started.values()]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=10.0)
        for actor in [*self.started.values(), *(actor for actor, _, _ in self._starting.values())]:
            ray.kill(actor)

    def _current(self, name: str) -> Any:
        if name in self._starting:
            return self._starting[name][0]
        return self.started.get(name)

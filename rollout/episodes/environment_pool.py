"""Processes of environments."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired

from maxpo.config import EnvironmentConfig
from maxpo.environments.base import Environment, Step
from maxpo.environments.registry import find_environment
from maxpo.errors import RunError
from maxpo.types import Prompt
from rollout.process_pool import POOLS, forget_token, new_pool, stop

_make: Callable[[], Environment] | None = None  # of an environment process, set once at its start


class StepError(Exception):
    """An environment gave no answer; the message is the outcome of its completion."""


def _start(config: EnvironmentConfig) -> None:
    """Runs first in an environment process: import the environment, and forget the cluster's token."""
    global _make
    forget_token()
    assert config.name is not None
    _make = find_environment(config.name, config.args)


def _reset(prompt: str, reference: Any, seed: int) -> bytes:
    """Runs in an environment process: an environment at the beginning of an episode."""
    assert _make is not None
    environment = _make()
    environment.reset(prompt, reference, seed)
    return pickle.dumps(environment)


def _step(state: bytes, completion: str) -> tuple[bytes, Step]:
    """Runs in an environment process: the environment after one more step, and what it said."""
    environment: Environment = pickle.loads(state)  # written by `_reset` or `_step` of such a process
    step = checked(environment.step(completion))
    return pickle.dumps(environment), step


def checked(step: Any) -> Step:
    """The step, made of plain values.

    Raises:
        TypeError: something in it is not what it should be.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step must return a maxpo.environments.Step, not {step!r:.100}")
    if not isinstance(step.observation, str):
        raise TypeError(f"the observation must be text, not {step.observation!r:.100}")
    for name, number in [("reward", step.reward), *step.parts.items()]:
        if not re.fullmatch(r"[\w.]+", name) or not isinstance(number, int | float) or not math.isfinite(number):
            raise TypeError(f"reward and parts must be finite numbers with plain names, not {name!r}: {number!r:.100}")
    parts = {name: float(number) for name, number in step.parts.items()}
    return Step(observation=step.observation, reward=float(step.reward), done=bool(step.done), parts=parts)


def _guarded(function: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """Runs in an environment process: what the environment raised, if anything, and the result."""
    try:
        return "", function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None


class EnvironmentPool:
    """Environments in processes that can be killed. An environment is bytes between two steps, so any process can take
    any step, and a step whose process was lost by no fault of its own is taken again."""

    def __init__(self, config: EnvironmentConfig, limit_s: float) -> None:
        """Start the processes.

        Args:
            config: the section `environment`.
            limit_s: seconds that a step may take with its wait for a process; then the pool is given up.
        """
        self._config, self._limit_s = config, limit_s
        self._pool = new_pool(config.workers, _start, config)
        self._waiting: set[Any] = set()  # futures of that pool

    def _give_up(self, pool: Any) -> None:
        """Replace the pool; pebble forgets what waits in one that is stopped, so that is cancelled and taken again."""
        if self._pool is pool:
            self._pool = new_pool(self._config.workers, _start, self._config)
            for future in self._waiting:
                future.cancel()
            self._waiting = set()
            stop(pool)

    async def reset(self, prompt: Prompt, seed: int) -> bytes:
        """An environment at the beginning of an episode.

        Raises:
            StepError: it raised, took longer than `environment.timeout_s`, or died.
        """
        return await self._call(_reset, prompt.text, prompt.reference, seed)

    async def step(self, state: bytes, completion: str) -> tuple[bytes, Step]:
        """The environment after one more step, and what it said. Raises as `reset` does."""
        return await self._call(_step, state, completion)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        for _ in range(POOLS):
            pool = self._pool
            try:
                future = pool.schedule(_guarded, args=[function, *args], timeout=self._config.timeout_s)
            except RuntimeError:  # so says pebble of a pool that is broken
                self._give_up(pool)
                continue
            self._waiting.add(future)
            try:
                async with asyncio.timeout(self._limit_s):
                    failed, result = await asyncio.wrap_future(future)
            except TimeoutError:
                if future.cancelled():  # it did not get its turn
                    self._give_up(pool)
                raise StepError("timeout") from None
            except ProcessExpired:
                raise StepError("died") from None
            except BrokenProcessPool:
                self._give_up(pool)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._pool is pool or (task is not None and task.cancelling()):
                    raise
                # Its pool was given up while it waited.
            else:
                if failed:
                    raise StepError(f"error: environment {self._config.name}: {failed}")
                return result
            finally:
                self._waiting.discard(future)
        raise RunError(f"the processes of environment {self._config.name} broke down {POOLS} times in a row")

    def shutdown(self) -> None:
        """Kill the processes."""
        stop(self._pool).wait(10.0)

"""Environments in processes that can be killed."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar, cast

from pebble import ProcessExpired, ProcessPool

from maxpo.config import EnvironmentConfig
from maxpo.environments.base import Environment, Step
from maxpo.environments.registry import find_environment
from maxpo.errors import RunError
from maxpo.types import Prompt
from rollout.process_pool import POOLS, forget_token, new_pool, stop

T = TypeVar("T")

_make: Callable[[], Environment] | None = None  # set once at the start of an environment process


class StepError(Exception):
    """An environment gave no answer. The message is the outcome of its completion."""


def _start(config: EnvironmentConfig) -> None:
    """Import the environment and forget the cluster's token. Runs first in an environment process."""
    global _make
    forget_token()
    assert config.name is not None
    _make = find_environment(config.name, config.args)


def _reset(prompt: str, reference: object, seed: int) -> bytes:
    """Return a pickled environment at the beginning of an episode. Runs in an environment process."""
    assert _make is not None
    environment = _make()
    environment.reset(prompt, reference, seed)
    return pickle.dumps(environment)


def _step(state: bytes, completion: str) -> tuple[bytes, Step]:
    """Return the pickled environment after one more step, and the step. Runs in an environment process."""
    environment: Environment = pickle.loads(state)  # written by `_reset` or `_step` of such a process
    step = checked(environment.step(completion))
    return pickle.dumps(environment), step


def checked(step: object) -> Step:
    """Return the step, made of plain values.

    Raises:
        TypeError: The step, or a value in it, has the wrong type, or a number is not finite.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step must return a maxpo.environments.Step, not {step!r:.100}")
    if not isinstance(step.observation, str):
        raise TypeError(f"the observation must be text, not {step.observation!r:.100}")
    for name, number in [("reward", step.reward), *step.parts.items()]:
        if not re.fullmatch(r"[\w.]+", name) or not isinstance(number, int | float) or not math.isfinite(number):
            raise TypeError(f"reward and parts must be finite numbers with plain names, not {name!r}: {number!r:.100}")
    parts = {name: float(number) for name, number in step.parts.items()}
    return Step(
        observation=step.observation,
        reward=float(step.reward),
        done=bool(step.done),
        success=None if step.success is None else bool(step.success),
        parts=parts,
    )


def _guarded(function: Callable[..., T], *args: object) -> tuple[str, T | None]:
    """Return the error of the environment in words, empty if none, and the result. Runs in an environment process."""
    try:
        return "", function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None


class EnvironmentPool:
    """Environments in processes that can be killed.

    Between two steps an environment is bytes, so any process can take any step. A step whose process was lost
    through no fault of the environment is repeated.
    """

    def __init__(self, config: EnvironmentConfig, limit_s: float) -> None:
        """Start the processes.

        Args:
            config: Section `environment`.
            limit_s: Seconds that a step may take, including the wait for a process. Then the pool is given up.
        """
        self._config, self._limit_s = config, limit_s
        self._pool = self._new_pool()
        self._waiting: set[Future[Any]] = set()  # futures of `_pool`

    async def reset(self, prompt: Prompt, seed: int) -> bytes:
        """Return a pickled environment at the beginning of an episode.

        Raises:
            StepError: The environment raised, took longer than `environment.timeout_s`, or died.
        """
        return await self._call(_reset, prompt.text, prompt.reference, seed)

    async def step(self, state: bytes, completion: str) -> tuple[bytes, Step]:
        """Return the pickled environment after one more step, and the step. Raises as `reset` does."""
        return await self._call(_step, state, completion)

    def shutdown(self) -> None:
        """Kill the processes."""
        stop(self._pool).wait(10.0)

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        """Run a function in an environment process, and again if the pool breaks."""
        for _ in range(POOLS):
            pool = self._pool
            try:
                future: Future[tuple[str, T | None]] = pool.schedule(
                    _guarded, args=[function, *args], timeout=self._config.timeout_s
                )
            except RuntimeError:  # pebble's error for a broken pool
                self._give_up(pool)
                continue
            answer = await self._answer(pool, future)
            if answer is not None:
                error, result = answer
                if error:
                    raise StepError(f"error: environment {self._config.name}: {error}")
                return cast("T", result)
        raise RunError(f"the processes of environment {self._config.name} broke down {POOLS} times in a row")

    async def _answer(self, pool: ProcessPool, future: Future[tuple[str, T | None]]) -> tuple[str, T | None] | None:
        """Wait for the answer of a process. None: the pool broke first.

        Raises:
            StepError: The process took too long, or died.
        """
        self._waiting.add(future)
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.cancelled():  # no process became free
                self._give_up(pool)
            raise StepError("timeout") from None
        except ProcessExpired:
            raise StepError("died") from None
        except BrokenProcessPool:
            self._give_up(pool)
            return None
        except asyncio.CancelledError:
            # Either `_give_up` cancelled the future, or somebody cancels this task.
            task = asyncio.current_task()
            if self._pool is pool or (task is not None and task.cancelling()):
                raise
            return None
        finally:
            self._waiting.discard(future)

    def _give_up(self, pool: ProcessPool) -> None:
        """Replace the pool, and cancel its waiting calls, which pebble forgets, so that they are repeated."""
        if self._pool is pool:
            self._pool = self._new_pool()
            for future in self._waiting:
                future.cancel()
            self._waiting = set()
            stop(pool)

    def _new_pool(self) -> ProcessPool:
        return new_pool(self._config.workers, _start, self._config)

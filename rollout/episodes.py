"""Completions of several turns: the policy and an environment take turns until one of them ends it."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired

from maxpo.config import EnvironmentConfig
from maxpo.environments.base import Environment, Step
from maxpo.environments.registry import find_environment
from maxpo.errors import RunError
from maxpo.seeds import derive_seed
from maxpo.types import Completion, Episode, Prompt
from rollout.killable import POOLS, forget_token, new_pool, stop

Turn = Callable[[str, list[int], int, int], Awaitable[Completion]]
"""Request id, tokens so far, seed and token limit to the policy's next turn, text included."""

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
        raise TypeError(f"step must return a maxpo.environments.base.Step, not {step!r:.100}")
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


class Observer:
    """Writes observations as the tokens that follow a turn."""

    def __init__(self, tokenizer: Any, role: str | None, template_args: Mapping[str, Any]) -> None:
        """Take the tokenizer apart.

        Args:
            tokenizer: of the model.
            role: see `environment.observation_role`.
            template_args: see `data.template_args`.

        Raises:
            ValueError: a role is wanted, but the tokenizer has no chat template, or one that hides the message.
        """
        self._tokenizer = tokenizer
        self._before = self._after = ""
        if role is None:
            return
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: set environment.observation_role to null")
        turn, observation = "TURN-OF-THE-POLICY", "THE-OBSERVATION"
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": turn},
            {"role": role, "content": observation},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_args)
        _, found, rest = text.partition(turn)
        self._before, shown, self._after = rest.partition(observation)
        if not found or not shown:
            raise ValueError(f"the chat template does not show a message of the role {role!r} after a turn")

    def __call__(self, observation: str, turn: Sequence[int]) -> list[int]:
        """The tokens of an observation after this turn. What looks like a special token in it is plain text."""
        before = self._before
        if turn and turn[-1] == self._tokenizer.eos_token_id:
            before = before.removeprefix(self._tokenizer.eos_token)  # the policy has written it
        plain = self._tokenizer.encode(observation, add_special_tokens=False, split_special_tokens=True)
        return [*self._encode(before), *plain, *self._encode(self._after)]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []


async def run_episode(
    name: str,
    prompt: Prompt,
    turn: Turn,
    environments: EnvironmentPool,
    observe: Observer,
    *,
    seed: int,
    group_seed: int,
    max_turns: int,
    max_tokens: int,
) -> Completion:
    """One completion in which policy and environment take turns.

    Args:
        name: of the episode, the beginning of its request ids.
        prompt: what comes first.
        turn: samples one turn of the policy.
        environments: answer it.
        observe: writes the answers as tokens.
        seed: of the first turn; those of later ones are derived from it.
        group_seed: what the environment gets, the same for the whole group.
        max_turns: turns of the policy, at most.
        max_tokens: of all turns and observations together.

    Returns:
        The episode, without its text; observations have the loss mask False and log-probabilities of 0. Where the
        environment failed, `episode.outcome` says how. An observation for which no token is left ends it.
    """
    turns: list[Completion] = []
    token_ids: list[int] = []
    logprobs: list[float] = []
    loss_mask: list[bool] = []
    reward, parts, outcome, finish_reason = 0.0, Counter[str](), "ok", "length"
    try:
        state = await environments.reset(prompt, group_seed)
        while True:
            number = len(turns)
            said = await turn(
                f"{name}/{number}",
                [*prompt.token_ids, *token_ids],
                derive_seed(seed, "turn", number) if number else seed,
                max_tokens - len(token_ids),
            )
            turns.append(said)
            token_ids += said.token_ids
            logprobs += said.logprobs
            loss_mask += said.loss_mask
            if said.finish_reason == "abort":
                finish_reason = "abort"
                break
            state, step = await environments.step(state, said.text)
            reward += step.reward
            parts.update(step.parts)
            if step.done:
                # Cut in the middle of its last turn it is as unfinished as any completion.
                finish_reason = said.finish_reason
                break
            seen = observe(step.observation, said.token_ids)
            if len(turns) == max_turns or len(token_ids) + len(seen) >= max_tokens:
                break
            token_ids += seen
            logprobs += [0.0] * len(seen)
            loss_mask += [False] * len(seen)
    except StepError as error:
        outcome, finish_reason = str(error), "stop"
    sampled = [said for said in turns if said.token_ids]
    return Completion(
        text="",
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        loss_mask=tuple(loss_mask),
        finish_reason=finish_reason,
        min_weight_version=min((said.min_weight_version for said in sampled), default=-1),
        max_weight_version=max((said.max_weight_version for said in sampled), default=-1),
        episode=Episode(
            turns=len(turns), answer=turns[-1].text if turns else "", reward=reward, outcome=outcome, parts=dict(parts)
        ),
    )

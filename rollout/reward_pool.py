"""Verifiers in worker processes that can be killed, so that no answer can hang or crash a run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from maxpo.background import Background
from maxpo.config import RewardConfig
from maxpo.deadline import waiting
from maxpo.errors import RunError
from maxpo.rewards import Score, find_judge, unread
from maxpo.rewards.code import configure
from maxpo.types import Completion, Group, Prompt, ScoredGroup

Verdict = tuple[str, Score | None]
"""Outcome ('ok', 'too_long', 'timeout', 'error: ...', 'died', 'abort') and the score where there is one."""


POOLS = 4
"""Pools of processes that may break one after the other before it is an error."""
STALL_S = 90.0
"""Seconds, beside the time limit of an answer, without a verdict after which a pool is given up. Above pebble's own
limit for a process that waits for its turn (60 s), and the start of a process."""


class VerifierError(RunError):
    """A verifier raised on every answer it was given."""


_judge: Callable[[Prompt, str], Score] | None = None  # of a worker process, set once at its start


def _start(config: RewardConfig) -> None:
    """Runs first in a worker process: import the verifiers, and forget the cluster's token."""
    global _judge
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    configure(config)
    _judge = find_judge(config)


def _verdicts(prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
    """Runs in a worker process: the verdicts on some answers to one prompt."""
    assert _judge is not None
    verdicts: list[Verdict] = []
    for text in texts:
        try:
            verdicts.append(("ok", _judge(prompt, text)))
        except Exception as error:
            # The boundary to code that is not ours; counted, and written beside the sample.
            verdicts.append((f"error: prompt {prompt.prompt_id}: {type(error).__name__}: {error}", None))
    return verdicts


@dataclass(frozen=True, slots=True)
class _Task:
    group: int
    indices: tuple[int, ...]


class RewardPool:
    """Scores groups in `reward.workers` processes.

    A group is one task with the time limit of one answer, since verifiers take milliseconds. Where the limit is
    passed or the process dies, the answers of that group are judged one by one, each with the whole limit, so
    that only the guilty one is invalid.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Start the processes; they import the verifiers only."""
        self._config = config
        find_judge(config)  # an error here, not in every worker process
        self._pool = self._new_pool()
        self._stall_s = config.timeout_s + STALL_S

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._config.workers,
            context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=[self._config],
        )

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion, in order.

        Raises:
            VerifierError: the verifier raised on every single answer; the message has the first one.
        """
        verdicts: list[list[Verdict | None]] = [[None] * len(group.completions) for group in groups]
        whole: list[_Task] = []
        for g, group in enumerate(groups):
            for i, completion in enumerate(group.completions):
                episode = completion.episode
                if completion.finish_reason == "abort":
                    verdicts[g][i] = ("abort", None)
                elif episode is not None and episode.outcome != "ok":
                    verdicts[g][i] = (episode.outcome, None)
                elif len(_answer(completion)) > self._config.max_chars:
                    verdicts[g][i] = ("too_long", unread(self._config, group.prompt.source))
            open_indices = tuple(i for i, verdict in enumerate(verdicts[g]) if verdict is None)
            if open_indices:
                whole.append(_Task(g, open_indices))

        failed = self._run(whole, groups, verdicts)
        single = [_Task(task.group, (i,)) for task in failed for i in task.indices]
        for task, outcome in self._run(single, groups, verdicts).items():
            verdicts[task.group][task.indices[0]] = (outcome, None)
        judged = [v for row in verdicts for v in row if v is not None]
        errors = [outcome for outcome, _ in judged if outcome.startswith("error")]
        if errors and len(errors) == len(judged):
            raise VerifierError(f"reward.verifier = {self._config.verifier} failed on every answer; first {errors[0]}")
        return [_scored(group, [v for v in row if v is not None]) for group, row in zip(groups, verdicts, strict=True)]

    def _run(
        self, tasks: Sequence[_Task], groups: Sequence[Group], verdicts: list[list[Verdict | None]]
    ) -> dict[_Task, str]:
        """Judge the tasks and enter their verdicts; those that timed out or died, with the outcome.

        Raises:
            VerifierError: the processes as a whole broke down again and again.
        """
        failed: dict[_Task, str] = {}
        left = list(tasks)
        for _ in range(POOLS):
            left = self._run_in_pool(left, groups, verdicts, failed)
            if not left:
                return failed
            # An idle process was killed, or one that held what the others wait for: pebble gives the whole pool up.
            broken, self._pool = self._pool, self._new_pool()
            Background(lambda pool=broken: _stop(pool))  # its threads may never end
        raise VerifierError(f"the verifier processes broke down {POOLS} times in a row, {len(left)} groups are left")

    def _run_in_pool(
        self,
        tasks: Sequence[_Task],
        groups: Sequence[Group],
        verdicts: list[list[Verdict | None]],
        failed: dict[_Task, str],
    ) -> list[_Task]:
        """The same in the pool that there is; the tasks that it did not get to before it broke."""
        futures: dict[_Task, Any] = {}
        left: list[_Task] = []
        for task in tasks:
            group = groups[task.group]
            args = [group.prompt, [_answer(group.completions[i]) for i in task.indices]]
            try:
                futures[task] = self._pool.schedule(_verdicts, args=args, timeout=self._config.timeout_s)
            except RuntimeError:  # so says pebble of a pool that is broken
                left.append(task)
        for task, future in futures.items():
            try:
                # In the order in which they begin, so each ends soon after the one before.
                with waiting("judging answers", lambda: ["the verifiers"], self._stall_s):
                    result = future.result(0 if left else self._stall_s)
                for i, verdict in zip(task.indices, result, strict=True):
                    verdicts[task.group][i] = verdict
            except FutureTimeout:
                if future.done():
                    failed[task] = "timeout"
                else:
                    left.append(task)
            except ProcessExpired:
                failed[task] = "died"
            except BrokenProcessPool:
                left.append(task)
        return left

    def shutdown(self) -> None:
        """Kill the processes."""
        pool = self._pool
        Background(lambda: _stop(pool)).wait(10.0)  # the threads of a pool that is broken may never end


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _answer(completion: Completion) -> str:
    """What the verifier judges."""
    return completion.text if completion.episode is None else completion.episode.answer


def _with_episode(completion: Completion, score: Score | None) -> Score | None:
    """The verifier's score, and what the environment gave."""
    episode = completion.episode
    if episode is None or score is None:
        return score
    return Score(reward=score.reward + episode.reward, parts={**score.parts, **episode.parts})


def _scored(group: Group, verdicts: Sequence[Verdict]) -> ScoredGroup:
    scores = [_with_episode(c, score) for c, (_, score) in zip(group.completions, verdicts, strict=True)]
    names = sorted({name for score in scores if score for name in score.parts})
    return ScoredGroup(
        group=group,
        rewards=tuple(score.reward if score else 0.0 for score in scores),
        valid=tuple(score is not None for score in scores),
        outcomes=tuple(outcome for outcome, _ in verdicts),
        reward_parts={name: tuple(score.parts.get(name, 0.0) if score else 0.0 for score in scores) for name in names},
    )

"""Verifiers in worker processes that can be killed, so that no answer can hang or crash a run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from maxpo.config import RewardConfig
from maxpo.errors import RunError
from maxpo.rewards import Judge, Score, find_verifier
from maxpo.types import Group, Prompt, ScoredGroup

Verdict = tuple[str, Score | None]
"""Outcome ('ok', 'too_long', 'timeout', 'error: ...', 'died', 'abort') and the score where there is one."""


class VerifierError(RunError):
    """A verifier raised on every answer it was given."""


_judge: Judge | None = None  # of a worker process, set once at its start


def _start(verifier: str) -> None:
    """Runs first in a worker process: import the verifier, and forget the cluster's token."""
    global _judge
    os.environ.pop("RAY_AUTH_TOKEN", None)
    _judge = find_verifier(verifier)


def _verdicts(prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
    """Runs in a worker process: the verdicts on some answers to one prompt."""
    assert _judge is not None
    verdicts: list[Verdict] = []
    for text in texts:
        try:
            verdicts.append(("ok", _judge(prompt.text, text, prompt.reference)))
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
        find_verifier(config.verifier)  # an error here, not in every worker process
        self._pool = ProcessPool(
            max_workers=config.workers,
            context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=[config.verifier],
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
                if completion.finish_reason == "abort":
                    verdicts[g][i] = ("abort", None)
                elif len(completion.text) > self._config.max_chars:
                    verdicts[g][i] = ("too_long", Score(reward=0.0))
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
        """Judge the tasks and enter their verdicts; those that timed out or died, with the outcome."""
        futures: dict[_Task, Any] = {}
        for task in tasks:
            group = groups[task.group]
            texts = [group.completions[i].text for i in task.indices]
            futures[task] = self._pool.schedule(_verdicts, args=[group.prompt, texts], timeout=self._config.timeout_s)
        failed: dict[_Task, str] = {}
        for task, future in futures.items():
            try:
                for i, verdict in zip(task.indices, future.result(), strict=True):
                    verdicts[task.group][i] = verdict
            except FutureTimeout:
                failed[task] = "timeout"
            except ProcessExpired:
                failed[task] = "died"
        return failed

    def shutdown(self) -> None:
        """Kill the processes."""
        self._pool.stop()
        self._pool.join()


def _scored(group: Group, verdicts: Sequence[Verdict]) -> ScoredGroup:
    scores = [score for _, score in verdicts]
    names = sorted({name for score in scores if score for name in score.parts})
    return ScoredGroup(
        group=group,
        rewards=tuple(score.reward if score else 0.0 for score in scores),
        valid=tuple(score is not None for score in scores),
        outcomes=tuple(outcome for outcome, _ in verdicts),
        reward_parts={name: tuple(score.parts.get(name, 0.0) if score else 0.0 for score in scores) for name in names},
    )

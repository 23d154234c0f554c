"""Verifiers in worker processes that can be killed, so that no answer can hang or crash a run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from maxpo.config import RewardConfig
from maxpo.rewards import Score, find_verifier
from maxpo.types import Group, ScoredGroup

Verdict = tuple[str, Score | None]
"""Outcome ('ok', 'too_long', 'timeout', 'error', 'died') and the score where there is one."""


def _judge(verifier: str, answers: Sequence[tuple[str, Any]]) -> list[Verdict]:
    """Runs in a worker process: the verdicts on some answers. A verifier that raises is an 'error'."""
    judge = find_verifier(verifier)
    verdicts: list[Verdict] = []
    for text, reference in answers:
        try:
            verdicts.append(("ok", judge(text, reference)))
        except Exception:
            verdicts.append(("error", None))
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
        self._pool = ProcessPool(max_workers=config.workers, context=multiprocessing.get_context("spawn"))

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion, in order."""
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
        return [_scored(group, [v for v in row if v is not None]) for group, row in zip(groups, verdicts, strict=True)]

    def _run(
        self, tasks: Sequence[_Task], groups: Sequence[Group], verdicts: list[list[Verdict | None]]
    ) -> dict[_Task, str]:
        """Judge the tasks and enter their verdicts; those that timed out or died, with the outcome."""
        futures = {
            task: self._pool.schedule(
                _judge,
                args=[
                    self._config.verifier,
                    [
                        (groups[task.group].completions[i].text, groups[task.group].prompt.reference)
                        for i in task.indices
                    ],
                ],
                timeout=self._config.timeout_s,
            )
            for task in tasks
        }
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

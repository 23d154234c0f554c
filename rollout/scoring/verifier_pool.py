"""Verifiers in worker processes that can be killed, so that no answer can hang or crash a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from maxpo.config import RewardConfig
from maxpo.errors import RunError
from maxpo.rewards.answers import answers_of, find_answer
from maxpo.rewards.base import Score
from maxpo.rewards.code.verifier import configure
from maxpo.rewards.registry import find_scorer, unread
from maxpo.runtime.waits import waiting
from maxpo.types import Completion, Group, Prompt, ScoredGroup
from rollout.process_pool import POOLS, forget_token, new_pool, stop

T = TypeVar("T")
Verdict = tuple[str, T | None]
"""Outcome ('ok', 'too_long', 'timeout', 'error: ...', 'died', 'abort') and the score where there is one; of a search
for answers the answer."""


STALL_S = 90.0
"""Seconds, beside the time limit of an answer, without a verdict after which a pool is given up. Above pebble's own
limit for a process that waits for its turn (60 s), and the start of a process."""


class VerifierError(RunError):
    """A verifier raised on every answer it was given."""


# Of a worker process, set once at its start.
_judge: Callable[[Prompt, str], Score] | None = None
_answer: Callable[[Prompt, str], str | None] | None = None


def _start(config: RewardConfig) -> None:
    """Runs first in a worker process: import the verifiers, and forget the cluster's token."""
    global _judge, _answer
    forget_token()
    configure(config)
    _judge, _answer = find_scorer(config), answers_of(config)


def _judge_all(prompt: Prompt, texts: Sequence[str]) -> list[Verdict[Score]]:
    """Runs in a worker process: the verdicts on some answers to one prompt."""
    assert _judge is not None
    return _each(_judge, prompt, texts)


def _answer_all(prompt: Prompt, texts: Sequence[str]) -> list[Verdict[str]]:
    """Runs in a worker process: what some completions of one prompt answer."""
    assert _answer is not None
    return _each(_answer, prompt, texts)


def _each(function: Callable[[Prompt, str], T | None], prompt: Prompt, texts: Sequence[str]) -> list[Verdict[T]]:
    verdicts: list[Verdict[T]] = []
    for text in texts:
        try:
            verdicts.append(("ok", function(prompt, text)))
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
        find_scorer(config)  # an error here, not in every worker process
        self._pool = self._new_pool()
        self._stall_s = config.timeout_s + STALL_S

    def _new_pool(self) -> ProcessPool:
        return new_pool(self._config.workers, _start, self._config)

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion, in order.

        Raises:
            VerifierError: the verifier raised on every single answer; the message has the first one.
        """
        verdicts: list[list[Verdict[Score] | None]] = [[None] * len(group.completions) for group in groups]
        for g, group in enumerate(groups):
            for i, completion in enumerate(group.completions):
                episode = completion.episode
                if completion.finish_reason == "abort":
                    verdicts[g][i] = ("abort", None)
                elif episode is not None and episode.outcome != "ok":
                    verdicts[g][i] = (episode.outcome, None)
                elif len(_judged_text(completion)) > self._config.max_chars:
                    verdicts[g][i] = ("too_long", unread(self._config, group.prompt.source))
        filled = self._fill(_judge_all, groups, verdicts, "judging answers")
        outcomes = [outcome for row in filled for outcome, _ in row]
        errors = [outcome for outcome in outcomes if outcome.startswith("error")]
        if errors and len(errors) == len(outcomes):
            raise VerifierError(f"reward.verifier = {self._config.verifier} failed on every answer; first {errors[0]}")
        return [_scored(group, row) for group, row in zip(groups, filled, strict=True)]

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """What every completion answers, for a majority vote: equal texts are equal answers.

        None for a completion without an answer, or that is not valid or was not read, and for one whose answer is not
        found in time; None for a group whose verifier does not say what an answer is.

        Raises:
            VerifierError: the processes as a whole broke down again and again.
        """
        votes = [find_answer(self._config, g.group.prompt.source) is not None for g in groups]
        voting = list(compress(groups, votes))
        found = self._fill(
            _answer_all,
            [g.group for g in voting],
            [[None if outcome == "ok" else (outcome, None) for outcome in g.outcomes] for g in voting],
            "finding the answers",
        )
        rows = iter(found)
        return [tuple(answer for _, answer in next(rows)) if voted else None for voted in votes]

    def _fill(
        self,
        function: Callable[[Prompt, Sequence[str]], list[Verdict[T]]],
        groups: Sequence[Group],
        verdicts: list[list[Verdict[T] | None]],
        doing: str,
    ) -> list[list[Verdict[T]]]:
        """The verdicts with those that are None filled in: by group, then one by one where a group failed."""
        whole: list[_Task] = []
        for g, row in enumerate(verdicts):
            if indices := tuple(i for i, verdict in enumerate(row) if verdict is None):
                whole.append(_Task(g, indices))
        failed = self._run(function, whole, groups, verdicts, doing)
        single = [_Task(task.group, (i,)) for task in failed for i in task.indices]
        for task, outcome in self._run(function, single, groups, verdicts, doing).items():
            verdicts[task.group][task.indices[0]] = (outcome, None)
        return [[v for v in row if v is not None] for row in verdicts]

    def _run(
        self,
        function: Callable[[Prompt, Sequence[str]], list[Verdict[T]]],
        tasks: Sequence[_Task],
        groups: Sequence[Group],
        verdicts: list[list[Verdict[T] | None]],
        doing: str,
    ) -> dict[_Task, str]:
        """Judge the tasks and enter their verdicts; those that timed out or died, with the outcome.

        Raises:
            VerifierError: the processes as a whole broke down again and again.
        """
        failed: dict[_Task, str] = {}
        left = list(tasks)
        for _ in range(POOLS):
            left = self._run_in_pool(function, left, groups, verdicts, failed, doing)
            if not left:
                return failed
            # An idle process was killed, or one that held what the others wait for: pebble gives the whole pool up.
            broken, self._pool = self._pool, self._new_pool()
            stop(broken)
        raise VerifierError(f"the verifier processes broke down {POOLS} times in a row, {len(left)} groups are left")

    def _run_in_pool(
        self,
        function: Callable[[Prompt, Sequence[str]], list[Verdict[T]]],
        tasks: Sequence[_Task],
        groups: Sequence[Group],
        verdicts: list[list[Verdict[T] | None]],
        failed: dict[_Task, str],
        doing: str,
    ) -> list[_Task]:
        """The same in the pool that there is; the tasks that it did not get to before it broke."""
        futures: dict[_Task, Any] = {}
        left: list[_Task] = []
        for task in tasks:
            group = groups[task.group]
            args = [group.prompt, [_judged_text(group.completions[i]) for i in task.indices]]
            try:
                futures[task] = self._pool.schedule(function, args=args, timeout=self._config.timeout_s)
            except RuntimeError:  # so says pebble of a pool that is broken
                left.append(task)
        for task, future in futures.items():
            try:
                # In the order in which they begin, so each ends soon after the one before.
                with waiting(doing, lambda: ["the verifiers"], self._stall_s):
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
        stop(self._pool).wait(10.0)


def _judged_text(completion: Completion) -> str:
    """What the verifier judges."""
    return completion.text if completion.episode is None else completion.episode.answer


def _with_episode(completion: Completion, score: Score | None) -> Score | None:
    """The verifier's score, and what the environment gave."""
    episode = completion.episode
    if episode is None or score is None:
        return score
    return Score(reward=score.reward + episode.reward, parts={**score.parts, **episode.parts})


def _scored(group: Group, verdicts: Sequence[Verdict[Score]]) -> ScoredGroup:
    scores = [_with_episode(c, score) for c, (_, score) in zip(group.completions, verdicts, strict=True)]
    names = sorted({name for score in scores if score for name in score.parts})
    return ScoredGroup(
        group=group,
        rewards=tuple(score.reward if score else 0.0 for score in scores),
        valid=tuple(score is not None for score in scores),
        outcomes=tuple(outcome for outcome, _ in verdicts),
        reward_parts={name: tuple(score.parts.get(name, 0.0) if score else 0.0 for score in scores) for name in names},
    )

"""Verifiers in worker processes that can be killed, so that no answer can hang or crash a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from pebble import ProcessExpired, ProcessPool

from maxpo.config import RewardConfig
from maxpo.errors import RunError
from maxpo.rewards.answers import answers_of, find_answer
from maxpo.rewards.base import Score, add_up, agreed, succeeds
from maxpo.rewards.code.verifier import configure
from maxpo.rewards.group import GroupReward, find_group_reward
from maxpo.rewards.maths.nodes import UndecidedError
from maxpo.rewards.registry import find_scorer, unread
from maxpo.runtime.waits import waiting
from maxpo.types import Completion, Group, Prompt, ScoredGroup
from rollout.process_pool import POOLS, forget_token, new_pool, stop

A = TypeVar("A")
T = TypeVar("T")

STALL_S = 90.0
"""Seconds without a result, beyond the time limit of an answer, after which a pool is given up. Longer than pebble's
own limit for a process that waits for its turn (60 s), and than the start of a process."""


class VerifierError(RunError):
    """The verifier processes broke down again and again."""


class Result(NamedTuple, Generic[T]):
    """The result of a verifier, or of a search for an answer, on one completion."""

    outcome: str
    """'ok', 'too_long', 'timeout', 'undecided: ...', 'error: ...', 'died', 'abort', or the outcome of a failed
    environment."""
    value: T | None = None
    """The score, or the answer. None if there is none."""


_Task = tuple[int, int]
"""Numbers of a group and of a completion in it."""
_Function = Callable[[Prompt, Any], Result[T]]
"""Runs in a worker process. Arguments: a prompt, and an answer or all answers to it."""
_Answers = tuple[Sequence[str], Sequence[float | None]]
"""Texts of a group and their rewards, None where a sample is not valid."""


# Set once at the start of a worker process.
_scorer: Callable[[Prompt, str], Score] | None = None
_answer_finder: Callable[[Prompt, str], str | None] | None = None
_group_reward: GroupReward | None = None


def _start(config: RewardConfig) -> None:
    """Import the verifiers and forget the cluster's token. Runs first in a worker process."""
    global _scorer, _answer_finder, _group_reward
    forget_token()
    configure(config)
    _scorer, _answer_finder = find_scorer(config), answers_of(config)
    _group_reward = find_group_reward(config)


def _score(prompt: Prompt, text: str) -> Result[Score]:
    """Score an answer. Runs in a worker process."""
    assert _scorer is not None
    return _guarded(_scorer, prompt, text)


def _answer(prompt: Prompt, text: str) -> Result[str]:
    """Find the answer in a completion. Runs in a worker process."""
    assert _answer_finder is not None
    return _guarded(_answer_finder, prompt, text)


def _judge(prompt: Prompt, answers: _Answers) -> Result[list[float]]:
    """Give all answers to a prompt their rewards. Runs in a worker process."""
    assert _group_reward is not None
    function = _group_reward
    return _guarded(lambda prompt, answers: function(prompt, *answers), prompt, answers)


def _guarded(function: Callable[[Prompt, A], T | None], prompt: Prompt, answer: A) -> Result[T]:
    try:
        return Result("ok", function(prompt, answer))
    except UndecidedError as error:
        return Result(f"undecided: {error}")
    except Exception as error:
        # The boundary to users' code. Errors are counted, and written beside the sample.
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return Result(f"error: prompt {prompt.prompt_id}: {type(error).__name__}: {error}{notes}")


class RewardPool:
    """Scores groups in `reward.workers` processes.

    Each answer is a task of its own, with the time limit `reward.timeout_s`. So an answer that hangs or kills its
    process takes its own score only, and costs one process the limit once. A task costs about 0.2 ms.
    """

    def __init__(self, config: RewardConfig, max_new_tokens: int) -> None:
        """Start the processes, which import the verifiers.

        Args:
            config: Section `reward`.
            max_new_tokens: See `rollout.max_new_tokens`. The longest answer that is read may depend on this number.
        """
        self._config, self._longest = config, config.longest(max_new_tokens)
        find_scorer(config)  # so that an error is raised here, and not in every worker process
        find_group_reward(config)
        self._pool = self._new_pool()
        self._stall_s = config.timeout_s + STALL_S
        self._ended = False
        self._one_at_a_time = threading.Lock()

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Return the groups with a reward for every completion, in order.

        Raises:
            VerifierError: The verifier processes broke down again and again.
        """
        known = [[self._known_score(c, group.prompt.source) for c in group.completions] for group in groups]
        rows = self._complete(_score, groups, known, "scoring answers")
        return [scored_group(group, row) for group, row in zip(groups, rows, strict=True)]

    def judge(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups with the rewards of `reward.group`, or as they are without it.

        The rewards of the verifiers become the part `verifier`. Success is what the verifiers say. If the function
        fails on a group, the samples of the group are masked.

        Raises:
            VerifierError: The verifier processes broke down again and again.
        """
        if self._config.group is None:
            return list(groups)
        arguments = {
            (g, 0): (group.group.prompt, _answers(group)) for g, group in enumerate(groups) if any(group.valid)
        }
        with self._one_at_a_time:
            results = self._run(_judge, arguments, "judging groups")
        return [_judged(group, results[g, 0]) if (g, 0) in results else group for g, group in enumerate(groups)]

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """Return the answer of every completion for a majority vote. Equal texts are equal answers.

        Returns:
            For each group the answers of its completions, or None if the group's verifier does not define answers.
            An answer is None if the completion has none, is not valid, was not read, or if the search took too long.

        Raises:
            VerifierError: The verifier processes broke down again and again.
        """
        votes = [find_answer(self._config, g.group.prompt.source) is not None for g in groups]
        known = [
            [None if voting and outcome == "ok" else Result[str](outcome) for outcome in g.outcomes]
            for g, voting in zip(groups, votes, strict=True)
        ]
        rows = self._complete(_answer, [g.group for g in groups], known, "finding the answers")
        return [
            tuple(result.value for result in row) if voting else None for row, voting in zip(rows, votes, strict=True)
        ]

    def shutdown(self) -> None:
        """Kill the processes. What another thread is scoring ends with an error."""
        self._ended = True  # first, so that a pool that is made meanwhile is either stopped here or never used
        stop(self._pool).wait(10.0)

    def _known_score(self, completion: Completion, source: str) -> Result[Score] | None:
        """Return the result of a completion that no verifier needs to see, or None."""
        if completion.finish_reason == "abort":
            return Result("abort")
        if completion.episode is not None and completion.episode.outcome != "ok":
            return Result(completion.episode.outcome)
        if len(_text_to_score(completion)) > self._longest:
            return Result("too_long", unread(self._config, source))
        return None

    def _complete(
        self, function: _Function[T], groups: Sequence[Group], known: Sequence[Sequence[Result[T] | None]], doing: str
    ) -> list[list[Result[T]]]:
        """Return the known results with those of `function` in place of None.

        Args:
            function: Makes results of answers.
            groups: The groups.
            known: For each group, the result of each completion, or None.
            doing: Words for the log.
        """
        # One thread at a time: a pool that breaks is replaced by the call that finds it broken.
        with self._one_at_a_time:
            return self._complete_alone(function, groups, known, doing)

    def _complete_alone(
        self, function: _Function[T], groups: Sequence[Group], known: Sequence[Sequence[Result[T] | None]], doing: str
    ) -> list[list[Result[T]]]:
        arguments = {
            (g, i): (groups[g].prompt, _text_to_score(groups[g].completions[i]))
            for g, row in enumerate(known)
            for i, result in enumerate(row)
            if result is None
        }
        new = self._run(function, arguments, doing)
        return [
            [new[g, i] if result is None else result for i, result in enumerate(row)] for g, row in enumerate(known)
        ]

    def _run(
        self, function: _Function[T], arguments: Mapping[_Task, tuple[Prompt, object]], doing: str
    ) -> dict[_Task, Result[T]]:
        """Return the results of the tasks, with a new pool each time that the pool breaks.

        A process may have been killed by somebody else than its answer, so the answer gets a second process.

        Raises:
            VerifierError: The verifier processes broke down again and again, or `shutdown` ended them.
        """
        results: dict[_Task, Result[T]] = {}
        once: set[_Task] = set()
        left, in_vain = list(arguments), 0
        while left:
            ended = self._run_in_pool(function, {task: arguments[task] for task in left}, doing)
            broken = len(ended) < len(left)
            again = {task for task, result in ended.items() if result.outcome == "died"} - once
            once |= again
            results |= {task: result for task, result in ended.items() if task not in again}
            left = [task for task in left if task not in results]
            in_vain = 0 if ended else in_vain + 1
            if in_vain == POOLS:
                raise VerifierError(
                    f"the verifier processes broke down {POOLS} times in a row, {len(left)} answers are left"
                )
            if broken:
                # An idle process was killed, or one that held a lock of the others: pebble gives up the entire pool.
                old, self._pool = self._pool, self._new_pool()
                stop(old)
                if self._ended:
                    raise VerifierError("the verifier processes were ended while they were at work")
        return results

    def _run_in_pool(
        self, function: _Function[T], arguments: Mapping[_Task, tuple[Prompt, object]], doing: str
    ) -> dict[_Task, Result[T]]:
        """Return the results of the tasks that the current pool finishes before it breaks."""
        futures: dict[_Task, Future[Result[T]]] = {}
        broken = False
        for task, args in arguments.items():
            try:
                futures[task] = self._pool.schedule(function, args=args, timeout=self._config.timeout_s)
            except RuntimeError:  # pebble's error for a broken pool
                broken = True
                break
        results: dict[_Task, Result[T]] = {}
        # In the order in which the tasks begin, so each ends soon after the one before.
        for task, future in futures.items():
            with waiting(doing, lambda: ["the verifiers"], self._stall_s):
                result = _result(future, 0 if broken else self._stall_s)
            if result is None:
                broken = True
            else:
                results[task] = result
        return results

    def _new_pool(self) -> ProcessPool:
        return new_pool(self._config.workers, _start, self._config)


def _result(future: Future[Result[T]], timeout_s: float) -> Result[T] | None:
    """Return the result of a task. None: the pool broke, or made no progress, before the task ended."""
    try:
        return future.result(timeout_s)
    except FutureTimeout:
        # pebble raises the same error for the time limit of a task. Only then the future is done.
        return Result[T]("timeout") if future.done() else None
    except ProcessExpired:
        return Result[T]("died")
    except (BrokenProcessPool, CancelledError):  # a pool that is stopped cancels what waits
        return None


def _text_to_score(completion: Completion) -> str:
    """Return the text that the verifier reads: the completion, or the last turn of an episode."""
    return completion.text if completion.episode is None else completion.episode.answer


def _answers(group: ScoredGroup) -> _Answers:
    rewards = [reward if ok else None for reward, ok in zip(group.rewards, group.valid, strict=True)]
    return [_text_to_score(completion) for completion in group.group.completions], rewards


def _judged(group: ScoredGroup, result: Result[list[float]]) -> ScoredGroup:
    """Return a group with the rewards of `reward.group`, or with all samples masked if there is no result."""
    if result.value is None:
        outcomes = tuple(result.outcome if ok else was for ok, was in zip(group.valid, group.outcomes, strict=True))
        no = (False,) * len(group.valid)
        return replace(group, valid=no, successes=no, outcomes=outcomes)
    rewards = tuple(add_up([new]) if ok else 0.0 for new, ok in zip(result.value, group.valid, strict=True))
    return replace(group, rewards=rewards, reward_parts={**group.reward_parts, "verifier": group.rewards})


def _with_episode(completion: Completion, score: Score | None) -> Score | None:
    """Return the verifier's score plus the rewards of the environment. Each of both that has an opinion must agree."""
    episode = completion.episode
    if episode is None or score is None:
        return score
    return Score(
        reward=add_up([score.reward, episode.reward]),
        success=agreed([score.success, episode.success]),
        parts={**score.parts, **episode.parts},
    )


def _is_success(score: Score) -> bool:
    """Return the opinion of the verifier and the environment or, if none has one, the rule for plain rewards."""
    return succeeds(score.reward) if score.success is None else score.success


def scored_group(group: Group, results: Sequence[Result[Score]]) -> ScoredGroup:
    """Return the group with the results of its completions.

    Rewards are rounded (`maxpo.rewards.base.add_up`), so that all that follows sees equal numbers for rewards that
    differ by rounding only.
    """
    scores = [_with_episode(c, result.value) for c, result in zip(group.completions, results, strict=True)]
    names = sorted({name for score in scores if score for name in score.parts})
    return ScoredGroup(
        group=group,
        rewards=tuple(add_up([score.reward]) if score else 0.0 for score in scores),
        successes=tuple(score is not None and _is_success(score) for score in scores),
        valid=tuple(score is not None for score in scores),
        outcomes=tuple(result.outcome for result in results),
        reward_parts={name: tuple(score.parts.get(name, 0.0) if score else 0.0 for score in scores) for name in names},
    )

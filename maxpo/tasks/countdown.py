"""Countdown: combine three numbers so that the last result is the target.

A prompt is `3 7 2=13:` and a solution `3*2=6,7+6=13`. The numbers are 1 to 9, the operations + - *, every
result lies in 0..99, and each number and each intermediate result is used once.
`maxpo.rewards.verifiers.countdown` scores the answers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from functools import cache
from random import Random

from maxpo.tasks import draws
from maxpo.tasks.base import Split, TaskProblem

MAX_RESULT = 99
"""Largest result of a step. The smallest is 0."""


def problems(seed: int, train_size: int, eval_size: int) -> Split:
    """Return the training and the evaluation problems.

    The target of a problem is the result of a random derivation, so targets that many derivations reach tend to come
    early. No problem occurs twice in a split. A hash of the sorted numbers and the target decides the side of a problem
    (`is_held_out`). The seed only selects and orders. So training problems of any seed and size share no (sorted
    numbers, target) with evaluation problems of any other seed and size. Neither split depends on the size of the
    other, and a smaller split is the beginning of a larger one.

    Args:
        seed: Selects and orders the problems.
        train_size: Number of training problems.
        eval_size: Number of evaluation problems.

    Raises:
        ValueError: A size is negative, or larger than the number of problems that exist on its side.
    """
    return _split(seed, train_size, held_out=False), _split(seed, eval_size, held_out=True)


def count(*, held_out: bool) -> int:
    """Return the number of different problems on the evaluation side (True) or the training side (False)."""
    return len(set(_weighted_problems(held_out)))


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Return True if a problem belongs to the evaluation side, whatever the seed and the order of the numbers."""
    return draws.is_held_out(hashlib.sha256(_question(sorted(numbers), target).encode()).hexdigest()[:16])


def random_derivation(numbers: Sequence[int], rng: Random) -> tuple[str, int]:
    """Return a random valid derivation that uses all numbers, uniform over all such derivations, and its result."""
    return rng.choice(_derivations(tuple(numbers)))


def teacher(numbers: Sequence[int], target: int, solve_share: float, rng: Random) -> str:
    """Return the answer of a weak teacher, for a supervised warm start that leaves something to learn by RL.

    Args:
        numbers: Numbers of the problem, in the prompt's order.
        target: Target of the problem, which some derivation must reach.
        solve_share: Probability in [0, 1] that the answer is a random solution. Otherwise the answer is a random valid
            derivation, which may still reach the target by chance.
        rng: Source of all randomness.

    Returns:
        Steps separated by commas.
    """
    if rng.random() >= solve_share:
        return random_derivation(numbers, rng)[0]
    return rng.choice([steps for steps, result in _derivations(tuple(numbers)) if result == target])


def _split(seed: int, size: int, *, held_out: bool) -> list[TaskProblem]:
    name = "evaluation" if held_out else "training"
    if size < 0:
        raise ValueError(f"countdown: the number of {name} problems must not be negative, got {size}")
    if size > count(held_out=held_out):
        raise ValueError(f"countdown: {size} {name} problems asked for, but only {count(held_out=held_out)} exist")
    order = list(_weighted_problems(held_out))
    Random(f"countdown/{name}/{seed}").shuffle(order)
    # A dict keeps the first of equal keys. The result equals rejection of problems already drawn.
    distinct = itertools.islice(dict.fromkeys(order), size)
    return [_problem(numbers, target) for numbers, target in distinct]


def _problem(numbers: tuple[int, ...], target: int) -> TaskProblem:
    question = _question(numbers, target)
    return TaskProblem(
        problem_id=hashlib.sha256(f"countdown/{question}".encode()).hexdigest()[:16],
        prompt=f"{question}:",
        reference={"numbers": list(numbers), "target": target},
    )


def _question(numbers: Sequence[int], target: int) -> str:
    return f"{' '.join(map(str, numbers))}={target}"


@cache
def _weighted_problems(held_out: bool) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return every (numbers, target) of one side, as often as there are derivations that reach the target."""
    return tuple(
        (numbers, target)
        for numbers in itertools.product(range(1, 10), repeat=3)
        for _, target in _derivations(numbers)
        if is_held_out(numbers, target) == held_out
    )


@cache
def _derivations(numbers: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """Return every distinct valid derivation from these numbers, as (steps, result), in a fixed order."""
    derivations: dict[str, int] = {}
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
        left, right = numbers[i], numbers[j]
        for operation, result in (("+", left + right), ("-", left - right), ("*", left * right)):
            if not 0 <= result <= MAX_RESULT:
                continue
            step = f"{left}{operation}{right}={result}"
            if not rest:
                derivations[step] = result
            for steps, last in _derivations((*rest, result)) if rest else ():
                derivations[f"{step},{steps}"] = last
    return tuple(derivations.items())

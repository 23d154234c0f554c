"""Training and evaluation splits of tasks that draw problems one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from maxpo.tasks.base import Split, TaskProblem

HELD_OUT_ONE_IN = 5
"""Number of problems of which one belongs to the evaluation side, in every task."""
_PATIENCE = 1000
"""Number of draws in a row without a new problem after which a task gives up."""


def make_id(task: str, *content: object) -> str:
    """Return a hash of a problem's content, which must be plain JSON."""
    return hashlib.sha256(json.dumps([task, *content], sort_keys=True).encode()).hexdigest()[:16]


def is_held_out(content_hash: str) -> bool:
    """Return True if a problem belongs to the evaluation side, whatever the seed. `content_hash` is hexadecimal."""
    return int(content_hash, 16) % HELD_OUT_ONE_IN == 0


def split(draw: Callable[[str, int], TaskProblem], train_size: int, eval_size: int) -> Split:
    """Return the training and the evaluation problems.

    No problem occurs twice, and no problem is on both sides, even for two different seeds. Neither split depends on the
    size of the other, and a smaller split is the beginning of a larger one.

    Args:
        draw: Makes a problem from the name of a split and a number that counts from 0.
        train_size: Number of training problems.
        eval_size: Number of evaluation problems.

    Raises:
        ValueError: A size is negative, or there are too few different problems.
    """
    return _side(draw, "training", train_size), _side(draw, "evaluation", eval_size)


def _side(draw: Callable[[str, int], TaskProblem], name: str, size: int) -> list[TaskProblem]:
    if size < 0:
        raise ValueError(f"the number of {name} problems must not be negative, got {size}")
    problems: dict[str, TaskProblem] = {}
    number = last_new = 0
    while len(problems) < size:
        if number - last_new > _PATIENCE:
            raise ValueError(
                f"{size} {name} problems asked for, but after {number} draws there are "
                f"only {len(problems)} different ones"
            )
        problem = draw(name, number)
        number += 1
        if is_held_out(problem.problem_id) == (name == "evaluation") and problem.problem_id not in problems:
            problems[problem.problem_id] = problem
            last_new = number
    return list(problems.values())

"""Splits of tasks that draw their problems one after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from maxpo.tasks.base import TaskProblem

HELD_OUT_ONE_IN = 5
"""One in this many problems belongs to the evaluation side."""
_PATIENCE = 1000
"""Draws in a row without a new problem after which there are taken to be no more."""


def make_id(task: str, *content: Any) -> str:
    """The hash of a problem's content, which must be plain JSON."""
    return hashlib.sha256(json.dumps([task, *content], sort_keys=True).encode()).hexdigest()[:16]


def is_held_out(problem_id: str) -> bool:
    """Whether a problem belongs to the evaluation side, whatever the seed."""
    return int(problem_id, 16) % HELD_OUT_ONE_IN == 0


def split(
    draw: Callable[[str, int], TaskProblem], train_size: int, eval_size: int
) -> tuple[list[TaskProblem], list[TaskProblem]]:
    """The training and the evaluation problems: different ones, and none on both sides, of any two seeds.

    Neither depends on the size of the other, and a smaller split is the beginning of a larger one.

    Args:
        draw: makes a problem from the name of a split and a number from 0.
        train_size: number of training problems.
        eval_size: number of evaluation problems.

    Raises:
        ValueError: a size is negative, or there are not so many different problems.
    """
    return _side(draw, "training", train_size), _side(draw, "evaluation", eval_size)


def _side(draw: Callable[[str, int], TaskProblem], name: str, size: int) -> list[TaskProblem]:
    if size < 0:
        raise ValueError(f"the number of {name} problems must not be negative, got {size}")
    found: dict[str, TaskProblem] = {}
    number = last_new = 0
    while len(found) < size:
        if number - last_new > _PATIENCE:
            raise ValueError(
                f"{size} {name} problems asked for, but after {number} draws there are only {len(found)} different ones"
            )
        problem = draw(name, number)
        number += 1
        if is_held_out(problem.problem_id) == (name == "evaluation") and problem.problem_id not in found:
            found[problem.problem_id] = problem
            last_new = number
    return list(found.values())

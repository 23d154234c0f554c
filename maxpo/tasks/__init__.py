"""Procedural reasoning tasks: problems that are made from a seed and need no download.

To add one, write a module with a `problems` function and add it to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem of a task."""

    problem_id: str
    """Hash of the content: the same problem has the same id in every run."""
    prompt: str
    reference: Any
    """What the task's verifier needs, as plain JSON values."""


Task = Callable[..., tuple[list[Problem], list[Problem]]]
"""`(seed, train_size, eval_size, **args)` to the training and the evaluation problems, which are disjoint;
`args` are the task's own settings."""

# Below the definitions because the tasks import `Problem` from here.
from maxpo.tasks import arithmetic, countdown, maze, reasoning_gym  # noqa: E402

TASKS: dict[str, Task] = {
    "arithmetic": arithmetic.problems,
    "countdown": countdown.problems,
    "maze": maze.problems,
    "reasoning_gym": reasoning_gym.problems,
}

"""What a procedural task is and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProblem:
    """One problem of a task."""

    problem_id: str
    """Hash of the content: the same problem has the same id in every run."""
    prompt: str
    reference: Any
    """What the task's verifier needs, as plain JSON values."""


Task = Callable[..., tuple[list[TaskProblem], list[TaskProblem]]]
"""`(seed, train_size, eval_size, **args)` to the training and the evaluation problems, which are disjoint;
`args` are the task's own settings."""

"""Types of procedural tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProblem:
    """One problem of a task."""

    problem_id: str
    """Hash of the content, so a problem has the same id in every run."""
    prompt: str
    reference: Any
    """Plain JSON values for the task's verifier."""


Split = tuple[list[TaskProblem], list[TaskProblem]]
"""The training and the evaluation problems, which are disjoint."""
Task = Callable[..., Split]
"""Function that makes problems. Arguments: seed, train_size, eval_size, and the settings of the task by name."""

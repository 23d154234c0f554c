"""All procedural tasks by name."""

from __future__ import annotations

from maxpo.tasks import arithmetic, countdown, maze, reasoning_gym
from maxpo.tasks.base import Task

TASKS: dict[str, Task] = {
    "arithmetic": arithmetic.problems,
    "countdown": countdown.problems,
    "maze": maze.problems,
    "reasoning_gym": reasoning_gym.problems,
}

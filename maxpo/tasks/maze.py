"""Maze: a shortest way from S to G in a small grid with walls, written as moves such as `RRD`.

`maxpo.rewards.verifiers.maze` scores the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from maxpo.rewards.verifiers.maze import MOVES
from maxpo.tasks.base import Split, TaskProblem
from maxpo.tasks.draws import make_id, split

_QUESTION = (
    "Find the shortest way from S to G. Each step goes to a free cell (.) up (U), down (D), left (L) or right (R); "
    "# is a wall. The last line of the answer is the moves alone, such as RRD.\n"
)
_TRIES = 1000
"""Most grids drawn for one problem until S and G are connected."""


def problems(seed: int, train_size: int, eval_size: int, *, size: int = 5, walls: float = 0.3) -> Split:
    """Return the training and the evaluation problems (`maxpo.tasks.draws.split`).

    Args:
        seed: Selects and orders the problems.
        train_size: Number of training problems.
        eval_size: Number of evaluation problems.
        size: Rows and columns of the grid, 2 to 50.
        walls: Probability of a wall in each cell, at least 0 and at most 0.6.

    Raises:
        ValueError: An argument is out of its range, or there are too few problems.
    """
    if not 2 <= size <= 50:
        raise ValueError(f"maze: size = {size} must be 2 to 50")
    if not 0 <= walls <= 0.6:
        raise ValueError(f"maze: walls = {walls} must be at least 0 and at most 0.6")

    def draw(side: str, number: int) -> TaskProblem:
        rng = Random(f"maze/{side}/{seed}/{number}")
        for _ in range(_TRIES):
            cells = ["#" if rng.random() < walls else "." for _ in range(size * size)]
            start, goal = rng.sample(range(size * size), 2)
            cells[start], cells[goal] = "S", "G"
            grid = ["".join(cells[row * size : (row + 1) * size]) for row in range(size)]
            way = shortest(grid)
            if way is not None:
                return TaskProblem(
                    problem_id=make_id("maze", grid),
                    prompt=_QUESTION + "\n".join(grid) + "\n",
                    reference={"grid": grid, "moves": len(way)},
                )
        raise ValueError(f"maze: none of {_TRIES} grids with size = {size} and walls = {walls} had a way: reduce walls")

    return split(draw, train_size, eval_size)


def shortest(grid: Sequence[str]) -> str | None:
    """Return a shortest way from S to G as moves, or None. The search is breadth-first."""
    cells = {(r, c): cell for r, row in enumerate(grid) for c, cell in enumerate(row) if cell != "#"}
    start = next(position for position, cell in cells.items() if cell == "S")
    ways = {start: ""}
    queue = [start]
    for row, column in queue:  # the loop itself extends the queue
        if cells[row, column] == "G":
            return ways[row, column]
        for move, (down, right) in MOVES.items():
            position = row + down, column + right
            if position in cells and position not in ways:
                ways[position] = ways[row, column] + move
                queue.append(position)
    return None

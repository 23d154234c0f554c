"""Estimators on a maze with a hidden goal and a 0/1 reward.

Every seed has its own 6 x 6 maze, 2 starts and 4 possible places of the goal. A prompt is a start and a goal. The
reward is 1 if the goal is reached within 14 moves. The policy is a table of softmax logits over the 4 moves for each
cell, without memory and without knowledge of the goal. So the best policy for pass@1 always goes to the likeliest goal,
and the best policy for pass@8 spreads over all goals. Before training the policy is a random walk, which rarely finds a
goal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import toy
from torch import Tensor

SIDE = 6
STARTS = 2
GOAL_CHANCES = (0.4, 0.25, 0.2, 0.15)
LIMIT = 14
NEAREST, FARTHEST = 5, 12
"""Lower and upper bound of the moves on the shortest way from every start to every goal."""
EXTRA_DOORS = 4
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


class Mazes:
    """A batch of mazes; implements `toy.Task`."""

    def __init__(self, seeds: Sequence[int]) -> None:
        mazes = [build(np.random.default_rng(seed)) for seed in seeds]
        self.next_cell = torch.tensor(np.stack([maze[0] for maze in mazes]))
        self.starts = torch.tensor(np.stack([maze[1] for maze in mazes]))
        self.goals = torch.tensor(np.stack([maze[2] for maze in mazes]))
        chances = torch.tensor(GOAL_CHANCES).repeat(STARTS) / STARTS
        self.weights = chances.expand(len(mazes), -1)

    def first_parameters(self) -> Tensor:
        """Return the parameters of a random walk."""
        return torch.zeros(self.next_cell.shape)

    def rollout(self, parameters: Tensor, prompts: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n walks for each prompt. A walk ends at its goal."""
        batch, count = prompts.shape
        table = torch.log_softmax(parameters, -1).flatten(0, 1)
        bounds = table.detach().exp().cumsum(-1)[:, :-1]
        next_cell = self.next_cell.flatten()
        first = torch.arange(batch)[:, None, None] * SIDE * SIDE
        goal = (self.goals.gather(1, prompts % len(GOAL_CHANCES))[:, :, None] + first).expand(-1, -1, n)
        cell = (self.starts.gather(1, prompts // len(GOAL_CHANCES))[:, :, None] + first).expand(-1, -1, n)
        taken, moving = [], []
        for _ in range(LIMIT):
            move = (torch.rand(batch, count, n, 1, generator=rng) > bounds[cell]).sum(-1)
            walking = cell != goal
            taken.append(cell * len(MOVES) + move)
            moving.append(walking)
            cell = torch.where(walking, next_cell[taken[-1]] + first, cell)
        logp = (table.flatten()[torch.stack(taken)] * torch.stack(moving)).sum(0)
        return (cell == goal).float(), logp


def build(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one maze: the target cell of each move, the starts, and the goals with the likeliest first."""
    while True:
        next_cell = carve(rng)
        starts = rng.choice(SIDE * SIDE, STARTS, replace=False)
        ways = np.stack([distances(next_cell, start) for start in starts])
        fits = np.flatnonzero((ways >= NEAREST).all(0) & (ways <= FARTHEST).all(0))
        if len(fits) >= len(GOAL_CHANCES):
            return next_cell, starts, rng.choice(fits, len(GOAL_CHANCES), replace=False)


def carve(rng: np.random.Generator) -> np.ndarray:
    """Return a maze [cells, moves] by random depth-first search with some more doors. A move into a wall stays."""
    next_cell = np.arange(SIDE * SIDE)[:, None].repeat(len(MOVES), 1)
    seen, path = {0}, [0]
    while path:
        fresh = [door for door in doors(path[-1]) if door[1] not in seen]
        if not fresh:
            path.pop()
            continue
        move, cell = fresh[rng.integers(len(fresh))]
        next_cell[path[-1], move], next_cell[cell, move ^ 1] = cell, path[-1]
        seen.add(cell)
        path.append(cell)
    for cell in rng.choice(SIDE * SIDE, EXTRA_DOORS, replace=False):
        move, other = doors(cell)[0]
        next_cell[cell, move], next_cell[other, move ^ 1] = other, cell
    return next_cell


def doors(cell: int) -> list[tuple[int, int]]:
    """Return the moves from a cell that stay in the grid, with their target cells."""
    places = [(move, cell // SIDE + down, cell % SIDE + right) for move, (down, right) in enumerate(MOVES)]
    return [(move, row * SIDE + column) for move, row, column in places if 0 <= row < SIDE and 0 <= column < SIDE]


def distances(next_cell: np.ndarray, start: int) -> np.ndarray:
    """Return the number of moves from the start to each cell."""
    ways = np.full(SIDE * SIDE, -1)
    ways[start] = 0
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        for other in next_cell[cell]:
            if ways[other] < 0:
                ways[other] = ways[cell] + 1
                queue.append(other)
    return ways


if __name__ == "__main__":
    toy.main("maze", __doc__ or "", Mazes, reward="pass", steps=500)

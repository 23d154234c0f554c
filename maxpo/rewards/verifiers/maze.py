"""The verifier of the maze task (`maxpo.tasks.maze`)."""

from __future__ import annotations

from typing import TypedDict

from maxpo.rewards.base import Score

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
"""Rows down and columns to the right of each move."""


class MazeReference(TypedDict):
    """Grid of a problem, and the minimum number of moves from S to G."""

    grid: list[str]
    moves: int


def maze(text: str, reference: MazeReference) -> Score:
    """Follow the moves in the last line of an answer that is not blank.

    The reward is 1 if the moves lead from S to G inside the grid, without a wall and in the fewest moves, otherwise 0.

    Args:
        text: Any text. Spaces and commas between moves are ignored.
        reference: `{"grid": ["S.", "#G"], "moves": 2}`, with the minimum number of moves.

    Returns:
        The reward, and the parts `format`: 1 if the line holds moves and nothing else, and `arrived`: 1 if the moves
        end at G.
    """
    grid, fewest = reference["grid"], reference["moves"]
    moves = text.rstrip().rpartition("\n")[2].replace(",", "").replace(" ", "").strip()
    if not moves or not set(moves) <= set(MOVES):
        return Score(reward=0.0, success=False, parts={"format": 0.0, "arrived": 0.0})
    row, column = next((r, line.index("S")) for r, line in enumerate(grid) if "S" in line)
    for move in moves:
        down, right = MOVES[move]
        row, column = row + down, column + right
        if not (0 <= row < len(grid) and 0 <= column < len(grid[row])) or grid[row][column] == "#":
            return Score(reward=0.0, success=False, parts={"format": 1.0, "arrived": 0.0})
    arrived = grid[row][column] == "G"
    right = arrived and len(moves) == fewest
    return Score(reward=float(right), success=right, parts={"format": 1.0, "arrived": float(arrived)})

"""Procedural tasks besides countdown: disjoint splits, and answers that their verifiers judge."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxpo.rewards.registry import REWARDS
from maxpo.rewards.verifiers.maze import MOVES, maze
from maxpo.tasks.arithmetic import evaluate
from maxpo.tasks.maze import shortest
from maxpo.tasks.registry import TASKS

CASES: list[tuple[str, dict[str, Any]]] = [
    ("arithmetic", {}),
    ("maze", {"size": 3}),
    ("reasoning_gym", {"dataset": "gcd"}),
]


@pytest.mark.parametrize(("task", "arguments"), CASES, ids=[task for task, _ in CASES])
def test_splits(task: str, arguments: dict[str, Any]) -> None:
    if task == "reasoning_gym":
        pytest.importorskip(task)
    train, held_out = TASKS[task](seed=1, train_size=40, eval_size=20, **arguments)
    assert (len(train), len(held_out)) == (40, 20)
    ids = {p.problem_id for p in train}
    assert len(ids) == len({p.prompt for p in train}) == 40
    again, other = TASKS[task](seed=1, train_size=10, eval_size=0, **arguments)
    assert (again, other) == (train[:10], [])
    later, other = TASKS[task](seed=2, train_size=40, eval_size=40, **arguments)
    assert [p.problem_id for p in later] != [p.problem_id for p in train]
    assert not ids & {p.problem_id for p in other}
    assert json.loads(json.dumps([p.reference for p in train])) == [p.reference for p in train]
    with pytest.raises(ValueError, match="training problems must not be negative, got -1"):
        TASKS[task](seed=1, train_size=-1, eval_size=0, **arguments)


def test_arithmetic() -> None:
    train, _ = TASKS["arithmetic"](seed=0, train_size=50, eval_size=0, terms=4)
    assert len({sign for p in train for sign in "+-*" if sign in p.prompt}) == 3
    for p in train:
        wanted = eval(p.prompt.removesuffix("="))
        assert REWARDS["numeric"](f"so it is {wanted}", p.reference).reward == 1
        assert REWARDS["numeric"](f"so it is {wanted + 1}", p.reference).reward == 0
    assert evaluate([2, 3, 4, 5, 2], list("*+-*")[:4]) == 2 * 3 + 4 - 5 * 2
    only, _ = TASKS["arithmetic"](seed=0, train_size=3, eval_size=0, terms=2, largest=3, operations="*")
    assert all("*" in p.prompt and not set(p.prompt) & set("+-456789") for p in only)
    with pytest.raises(ValueError, match="100 training problems asked for, but after"):
        TASKS["arithmetic"](seed=0, train_size=100, eval_size=0, terms=2, largest=2)
    for wrong, message in (({"largest": 0}, "largest = 0"), ({"operations": "/"}, "operations = '/'")):
        with pytest.raises(ValueError, match=message):
            TASKS["arithmetic"](seed=0, train_size=1, eval_size=0, **wrong)


GRID = {"grid": ["S.#", "#..", ".#G"], "moves": 4}


@pytest.mark.parametrize(
    ("text", "reward", "form", "arrived"),
    [
        ("RDRD", 1, 1, 1),
        ("I think\nR, D, R, D \n\n", 1, 1, 1),
        ("RLRDRD", 0, 1, 1),
        ("RDR", 0, 1, 0),
        ("RRDD", 0, 1, 0),
        ("DRRD", 0, 1, 0),
        ("LRRDRD", 0, 1, 0),
        ("RDRDD", 0, 1, 0),
        ("RDRDU", 0, 1, 0),
        ("moves: RDRD", 0, 0, 0),
        ("RDRD\nso it is", 0, 0, 0),
        ("rdrd", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_the_verifier_of_mazes(text: str, reward: float, form: float, arrived: float) -> None:
    score = maze(text, GRID)
    assert (score.reward, score.parts) == (reward, {"format": form, "arrived": arrived})


@given(st.text())
def test_the_verifier_of_mazes_judges_any_text(text: str) -> None:
    assert maze(text, GRID).reward in (0, 1)


def test_mazes_have_a_way_and_none_is_shorter() -> None:
    assert shortest(["S#G"]) is None
    train, held_out = TASKS["maze"](seed=0, train_size=20, eval_size=5, size=3, walls=0.4)
    for p in train + held_out:
        grid, fewest = p.reference["grid"], p.reference["moves"]
        assert p.prompt.endswith("\n".join(grid) + "\n")
        way = shortest(grid)
        assert way is not None
        assert len(way) == fewest
        assert maze(way, p.reference).reward == 1
        shorter = ("".join(m) for n in range(1, min(fewest, 6)) for m in itertools.product(MOVES, repeat=n))
        assert not any(maze(moves, p.reference).parts["arrived"] for moves in shorter)
    for wrong, message in (({"size": 1}, "size = 1"), ({"walls": 0.7}, "walls = 0.7")):
        with pytest.raises(ValueError, match=message):
            TASKS["maze"](seed=0, train_size=1, eval_size=0, **wrong)


def test_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    judge = REWARDS["reasoning_gym"]
    for dataset in ("gcd", "chain_sum", "countdown", "letter_counting"):
        train, _ = TASKS["reasoning_gym"](seed=0, train_size=3, eval_size=0, dataset=dataset)
        for p in train:
            answer = p.reference["entry"]["answer"]
            score = judge(f"<answer>no</answer> or <answer> {answer} </answer>.", p.reference)
            assert (score.reward, score.parts) == (1.0, {"format": 1.0})
            assert judge(f" {answer}\n", p.reference).reward == 1.0
            wrong = judge("<answer>x</answer>", p.reference)
            assert wrong.reward < 1
    small, _ = TASKS["reasoning_gym"](seed=0, train_size=3, eval_size=0, dataset="gcd", max_numbers=2, max_value=9)
    assert all(
        max(int(w) for w in p.prompt.replace(",", " ").replace(".", " ").split() if w.isdigit()) <= 9 for p in small
    )
    for arguments, message in (
        ({"dataset": "chess"}, "dataset = chess must be one of"),
        ({"dataset": "gcd", "depth": 3}, "gcd with the settings"),
        ({"dataset": "gcd", "size": 3}, "size is set by the run"),
        ({"dataset": "arc_agi"}, "arc_agi cannot be scored from plain JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            TASKS["reasoning_gym"](seed=0, train_size=1, eval_size=0, **arguments)

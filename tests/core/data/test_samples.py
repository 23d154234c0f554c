"""The sample data of configs/data: right answers pass, wrong ones do not, and the parquet files hold the JSON lines."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sympy

from maxpo.rewards.verifiers.math_answer import math_answer
from maxpo.rewards.verifiers.numeric import numeric

FOLDER = Path("configs/data")
STYLES = ("gsm8k", "math")


def rows(style: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{style}_sample.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", rows("gsm8k"), ids=lambda row: row["problem"][:30])
def test_a_word_problem(row: dict[str, Any]) -> None:
    computed = eval(row["by"])
    for text in (f"The answer is {computed}.", f"#### {row['answer']}", rf"It is $\boxed{{{row['answer']}}}$."):
        assert numeric(text, row["answer"]).reward == 1, text
    assert numeric(f"#### {row['wrong']}", row["answer"]).reward == 0


@pytest.mark.parametrize("row", rows("math"), ids=lambda row: row["problem"][:30])
def test_a_problem_with_a_latex_answer(row: dict[str, Any]) -> None:
    names = {name: sympy.Symbol(name) for name in "nxy"}
    # math-verify takes the i of `10 i`, as sympy writes it, for a variable.
    computed = sympy.latex(eval(row["by"], vars(sympy) | names)).replace(" i", "i")
    for answer in (row["answer"], computed):
        assert math_answer(rf"So it is $\boxed{{{answer}}}$.", row["answer"]).reward == 1, answer
    assert math_answer(rf"So it is $\boxed{{{row['wrong']}}}$.", row["answer"]).reward == 0
    assert math_answer(f"So it is ${row['answer']}$.", row["answer"]).reward == 0, "not boxed"


@pytest.mark.parametrize("style", STYLES)
def test_the_parquet_files_hold_the_json_lines(style: str) -> None:
    made = runpy.run_path(str(FOLDER / "make_samples.py"))["rows"]
    there = rows(style)
    assert len({row["problem"] for row in there}) == len(there) == 24
    for split, size in (("train", 16), ("test", 8)):
        table = pyarrow.parquet.read_table(FOLDER / f"{style}_sample_{split}.parquet")
        assert table.to_pylist() == made(style, split)
        of_split = [row for row in there if row["split"] == split]
        assert table.num_rows == len(of_split) == size
        for row, written in zip(of_split, table.to_pylist(), strict=True):
            assert written["prompt"][0]["content"].startswith(row["problem"] + " ")
            assert written["reward_model"] == {"style": "rule", "ground_truth": row["answer"]}


def test_the_samples_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 100_000

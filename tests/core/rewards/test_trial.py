"""References and functions of users are tried before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.run.preflight import load_data
from maxpo.config import Config, RewardConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from maxpo.rewards.base import Score
from maxpo.rewards.registry import find_verifier
from maxpo.rewards.trial import reference_check, try_functions
from tests.fakes import prompt

NO_EVAL = ("eval.every=0", "eval.at_start=false", "eval.at_end=false")


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Config]:
    """A function that writes rows and returns settings that read them."""

    def write(references: list[Any], *overrides: str) -> Config:
        rows = [json.dumps({"prompt": "3", "answer": reference}) + "\n" for reference in references]
        (tmp_path / "rows.jsonl").write_text("".join(rows))
        settings = [f"data.train_file={tmp_path}/rows.jsonl", "data.task=null", *NO_EVAL, *overrides]
        return load_config(["configs/presets/demo.yaml"], settings).config

    return write


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("math", r"1-\frac{1}{\mathrm e}"), ("math", 0.00001), ("math", 1e16), ("math", [1, "x=2"]),
        ("math", "12:30"),
        ("math", r"\sum_{n=1}^\infty \frac{1}{n^2}"), ("math", r"\boxed{5}"), ("math", "$5$"), ("math", "no solution"),
        ("math", r"(-\infty, 3]"), ("numeric", "1,234"), ("numeric", "3/4"), ("numeric", -1e-7), ("numeric", [1, 2]),
        ("choice", "(b)"), ("exact", "yes"), ("exact", 5), ("regex", "a+"), ("json_schema", {"type": "object"}),
        ("countdown", {"numbers": [1], "target": 1}), ("code", {"inputs": [""], "outputs": ["1"]}), ("format", None),
        ("length", None), ("tests.verifiers:starts", None),
    ],
)  # fmt: skip
def test_good_references_pass(name: str, reference: object) -> None:
    reference_check(RewardConfig(verifier=name))(reference, "rows")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("math", None), ("math", {}), ("math", []), ("math", [[1]]), ("math", True), ("math", r"\frac{1}{"),
        ("math", "1/0"), ("math", r"\int_{"), ("math", "4 2"), ("math", "9" * 301), ("math", float("nan")),
        ("numeric", "3,4"), ("numeric", None), ("numeric", "five"), ("numeric", [1, None]), ("numeric", "x"),
        ("choice", "K"), ("choice", None), ("exact", None), ("exact", {"a": 1}), ("exact", True), ("regex", "("),
        ("json_schema", {"type": 3}), ("countdown", 3), ("maze", {}), ("code", {"inputs": []}),
    ],
)  # fmt: skip
def test_bad_references_are_told(name: str, reference: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        reference_check(RewardConfig(verifier=name))(reference, "rows")


def test_the_verifiers_of_a_source_are_tried() -> None:
    reward = RewardConfig(
        verifier="exact", parts={"format": 1.0, "numeric": 1.0}, by_source={"a": "combined", "b": "choice"}
    )
    check = reference_check(reward)
    check("x", "rows")
    check("3", "a")
    check("B", "b")
    for source in ("a", "b"):
        with pytest.raises(ValueError, match="the reference must be"):
            check("x", source)


def test_a_bad_reference_is_told_with_its_line_before_anything_starts(loaded: Callable[..., Config]) -> None:
    with pytest.raises(
        InputError, match=r"2 of 3 rows cannot be used:\n  line 2: math: the ref.*\n  line 3: math: the"
    ):
        load_data(loaded(["5", None, r"\frac{1}{"], "reward.verifier=math"))
    assert len(load_data(loaded(["5", None], "reward.verifier=math", "data.max_bad_rows=1"))[0]) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "is called with .prompt, text, reference.: too many positional arguments"),
        ("four", "missing a required argument: 'letter'"),
        ("Judge", "is not a function"),
        ("wrong_type", r"TypeError: a reward must be a finite number.*'good' \(.*tests/verifiers\.py:\d+\)"),
        ("empty", r"on the first prompt.*IndexError.*tests/verifiers\.py:\d+\)"),
    ],
)
def test_a_function_that_cannot_work_is_told_before_anything_starts(
    name: str, message: str, loaded: Callable[..., Config]
) -> None:
    with pytest.raises(InputError, match=message):
        load_data(loaded(["5"], f"reward.verifier=tests.verifiers:{name}"))


def test_the_line_of_an_error_is_that_of_the_function() -> None:
    line = next(n for n, text in enumerate(Path("tests/verifiers.py").read_text().splitlines(), 1) if "[9]" in text)
    with pytest.raises(ValueError, match=rf"tests/verifiers\.py:{line}\)"):
        try_functions(RewardConfig(verifier="tests.verifiers:empty"), [prompt()])


@pytest.mark.parametrize(
    "number",
    [np.float32(0.5), np.float64(0.5), Decimal("0.5"), Fraction(1, 2), torch.tensor(0.5), torch.tensor([[0.5]])],
    ids=lambda number: type(number).__name__,
)
def test_numbers_of_other_libraries_are_numbers(number: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[object] = [number, {"a": number}, Score(reward=number, success=True)]
    monkeypatch.setattr("tests.verifiers.starts", lambda prompt, text, reference: returned.pop())
    judge = find_verifier("tests.verifiers:starts")
    for _ in range(3):
        score = judge("p", "text", None)
        assert score.reward == 0.5
        assert type(score.reward) is float


@pytest.mark.parametrize(
    ("value", "reward"),
    [(np.int64(2), 2.0), (np.bool_(True), 1.0), (True, 1.0), (torch.tensor(True), 1.0), (torch.tensor(3), 3.0)],
)
def test_integers_and_truth_values_are_numbers(value: Any, reward: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.verifiers.starts", lambda prompt, text, reference: value)
    assert find_verifier("tests.verifiers:starts")("p", "text", None) == Score(reward=reward, success=True)


@pytest.mark.parametrize(
    "value", ["1", b"1", None, 1j, np.float32("nan"), torch.tensor([1.0, 2.0]), Decimal("Infinity"), [1.0], float]
)
def test_other_results_are_none(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.verifiers.starts", lambda prompt, text, reference: value)
    with pytest.raises(TypeError, match="a reward must be a finite number"):
        find_verifier("tests.verifiers:starts")("p", "text", None)

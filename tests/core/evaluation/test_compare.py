"""Two evaluations side by side."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import main
from maxpo.errors import InputError
from maxpo.evaluation.comparison import compare
from maxpo.evaluation.figures import PromptResult
from maxpo.evaluation.report import bootstrap, report
from maxpo.evaluation.result_file import Evaluation, read_evaluation, write_evaluation
from tests.changes import changed

SETTINGS = {
    "eval": {"samples": 2, "k": [1, 2], "greedy": False},
    "rollout": {"max_new_tokens": 9, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "workers": 1},
    "reward": {"verifier": "exact", "args": {}, "workers": 1},
    "environment": {"name": None, "workers": 1},
    "run": {"seed": 0},
}


def prompt_result(name: str, *rewards: float | None, source: str = "s", **kwargs: Any) -> PromptResult:
    values = {"votes": None, "greedy": None, "unique": 1.0} | kwargs
    values.setdefault("successes", tuple(None if r is None else r >= 1 for r in rewards))
    return PromptResult(prompt_id=name, source=source, rewards=rewards, **values)


def evaluation(name: str, *results: PromptResult, **changes: dict[str, Any]) -> Evaluation:
    settings = {section: values | changes.get(section, {}) for section, values in SETTINGS.items()}
    return Evaluation(path=Path(name), model=f"model {name}", settings=settings, results=results)


def test_differences_by_hand() -> None:
    a = evaluation(
        "a", prompt_result("p", 1, 0, votes=(0, 1)), prompt_result("q", 0, 0, votes=(0, 0)), prompt_result("r", 0, None)
    )
    b = evaluation(
        "b", prompt_result("q", 1, 1, votes=(0, 0)), prompt_result("p", 1, 0, votes=(0, 0)), prompt_result("r", 1, 1)
    )
    result = compare(a, b)
    assert (result.overall.prompts, result.overall.dropped_prompts) == (2, 1)
    assert (result.sources, result.missing) == ({}, ())
    values = {name: (d.a.value, d.b.value, d.difference.value) for name, d in result.overall.figures.items()}
    assert values == {
        "pass@1": (0.25, 0.75, 0.5),
        "pass@2": (0.5, 1.0, 0.5),
        "avg@2": (0.25, 0.75, 0.5),
        "maj@2": (0.25, 0.75, 0.5),
    }
    difference = result.overall.figures["pass@2"].difference
    assert (difference.low, difference.high) == (0.0, 1.0)  # of two prompts, one of which is equal
    assert not result.overall.figures["pass@2"].excludes_zero
    same = compare(a, a).overall.figures["pass@1"]
    assert (same.difference.low, same.difference.high, same.excludes_zero) == (0.0, 0.0, False)


def test_one_is_better_on_every_prompt() -> None:
    names = [f"p{i}" for i in range(20)]
    a = evaluation("a", *[prompt_result(name, i % 2, 0) for i, name in enumerate(names)])
    b = evaluation("b", *[prompt_result(name, 1, i % 2) for i, name in enumerate(names)])
    d = compare(a, b).overall.figures["pass@1"]
    # Each prompt is better by exactly a half, while the prompts themselves differ.
    assert (d.difference.low, d.difference.value, d.difference.high) == (0.5, 0.5, 0.5)
    assert d.excludes_zero
    assert d.a.high - d.a.low > 0.1


def test_each_source_graded_rewards_every_k_and_what_only_one_has() -> None:
    first = [prompt_result("p", 1, 0.5, source="s", greedy=1.0), prompt_result("p", 0, 0, source="t", greedy=0.0)]
    second = [prompt_result("p", 1, 1, source="s", votes=(0, 0)), prompt_result("p", 0, 1, source="t", votes=(0, 1))]
    result = compare(evaluation("a", *first, eval={"greedy": True, "k": [1]}), evaluation("b", *second))
    assert list(result.overall.figures) == ["pass@1", "pass@2", "max@1", "max@2", "avg@2"]
    assert {s: c.figures["max@1"].difference.value for s, c in result.sources.items()} == {"s": 0.25, "t": 0.5}
    assert result.missing[:2] == ("greedy: only in A", "maj@2: only in B")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval": {"samples": 4}}, "eval.samples: 2 in A, 4 in B"),
        ({"rollout": {"temperature": 0.5}}, "rollout.temperature: 1.0 in A, 0.5 in B"),
        ({"reward": {"verifier": "math"}}, "reward.verifier: 'exact' in A, 'math' in B"),
        ({"environment": {"name": "calculator"}}, "environment.name: None in A, 'calculator' in B"),
        ({"environment": {"name": "calculator"}, "run": {"seed": 1}}, "run.seed: 0 in A, 1 in B"),
        ({"reward": {"max_chars": 9}}, "reward.max_chars: None in A, 9 in B"),
    ],
)
def test_settings_that_change_what_a_figure_means_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="a and b cannot be compared, settings differ") as refusal:
        compare(evaluation("a", prompt_result("p", 1, 0)), evaluation("b", prompt_result("p", 1, 0), **changes))
    assert words in str(refusal.value)


def test_settings_that_do_not_are_not_refused() -> None:
    free = {
        "reward": {"workers": 5},
        "environment": {"max_turns": 5},
        "run": {"seed": 5},
        "rollout": {"workers": 5},
        "eval": {"k": [2]},
    }
    assert (
        compare(
            evaluation("a", prompt_result("p", 1, 0)), evaluation("b", prompt_result("p", 1, 0), **free)
        ).overall.prompts
        == 1
    )


def test_other_prompts_are_refused() -> None:
    a = evaluation("a", prompt_result("p", 1, 0), prompt_result("q", 1, 0))
    with pytest.raises(InputError, match=r"prompts differ: 1 of 2 are only in A \(such as q of source s\)\. Evaluate"):
        compare(a, evaluation("b", prompt_result("p", 1, 0)))
    with pytest.raises(InputError, match=r"1 of 2 are only in A .*; 1 of 2 are only in B \(such as q of source t\)"):
        compare(a, evaluation("b", prompt_result("p", 1, 0), prompt_result("q", 1, 0, source="t")))
    with pytest.raises(InputError, match="no prompt has 2 valid samples in both a and b"):
        compare(evaluation("a", prompt_result("p", 1, None)), evaluation("b", prompt_result("p", 1, 1)))


def correlated(seed: int, prompts: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of two models that find the same prompts hard; B is better by `shift` in expectation."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.1, 0.9 - shift, size=prompts)
    return rng.binomial(16, hard) / 16, rng.binomial(16, hard + shift) / 16


def test_the_paired_interval_is_narrower_and_covers_about_as_often_as_it_says() -> None:
    a, b = correlated(0, 100, 0.05)
    paired = bootstrap(b - a)
    width_a, width_b = (e.high - e.low for e in (bootstrap(a), bootstrap(b)))
    unpaired = np.hypot(width_a, width_b)
    assert paired.high - paired.low < 0.6 * unpaired
    covered = 0
    for seed in range(200):
        a, b = correlated(seed, 60, 0.05)
        difference = bootstrap(b - a, seed)
        covered += difference.low <= 0.05 <= difference.high
    assert 180 <= covered <= 198


def test_the_file_goes_there_and_back_and_is_legible(tmp_path: Path) -> None:
    results = [prompt_result("p", 1.0, None, votes=(0, None), greedy=0.5), prompt_result("q", 1.0, 0.0)]
    write_evaluation(tmp_path / "eval.json", "m", SETTINGS, report(results, [1]), results)
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]
    back = read_evaluation(tmp_path)
    assert (back.model, back.settings, list(back.results)) == ("m", SETTINGS, results)
    assert read_evaluation(tmp_path / "eval.json").results == back.results
    text = (tmp_path / "eval.json").read_text()
    assert json.loads(text)["overall"]["estimates"]["pass@1"]["value"] == 0.75
    assert [line.strip()[:18] for line in text.splitlines()[-4:-2]] == ['{"prompt_id": "p",', '{"prompt_id": "q",']


def test_successes_are_in_the_file_and_follow_from_the_rewards_of_older_files(tmp_path: Path) -> None:
    results = [prompt_result("p", 1.0, 0.5, 0.7 + 0.2 + 0.1, None, successes=(False, True, False, None))]
    write_evaluation(tmp_path / "eval.json", "m", SETTINGS, report(results, [1]), results)
    assert read_evaluation(tmp_path).results[0].successes == (False, True, False, None)
    older = json.loads((tmp_path / "eval.json").read_text())
    del older["prompts"][0]["successes"]
    (tmp_path / "eval.json").write_text(json.dumps(older))
    back = read_evaluation(tmp_path)
    assert back.results[0].successes == (True, False, True, None)
    assert compare(back, back).overall.figures["pass@1"].a.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "is not a file of `maxpo evaluate`, or is damaged: Input should be"),
        ('{"format": 2}', "is of format 2, and this version reads 1"),
        ("{", "is damaged: Invalid JSON"),
        ('{"format": 1, "model": "m", "settings": {}, "prompts": []}', "is damaged: eval: Field required"),
    ],
)
def test_other_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(InputError) as refusal:
        read_evaluation(tmp_path)
    assert str(tmp_path / "eval.json") in str(refusal.value)
    assert words in str(refusal.value)


@settings(max_examples=int(os.environ.get("MAXPO_EXAMPLES", "100")), deadline=None, derandomize=True)
@given(st.data())
def test_any_change_of_a_file_is_an_input_error_or_harmless(data: st.DataObject) -> None:
    results = [prompt_result(f"p{i}", float(i > 3), 1.0, votes=(0, 1), greedy=0.0) for i in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "b"):
            write_evaluation(Path(folder, name), "m", SETTINGS, report(results, [1, 2]), results)
        document = json.loads(Path(folder, "a").read_text())
        Path(folder, "a").write_text(json.dumps(data.draw(changed(document))))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            assert main(["compare", f"{folder}/a", f"{folder}/b"]) in (0, 2)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, right in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        results = [prompt_result(f"p{i}", float(i > 3), right, source=f"source {i % 2}") for i in range(10)]
        write_evaluation(tmp_path / name / "eval.json", f"the {name}", SETTINGS, report(results, [1, 2]), results)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "A: the a\nB: the b" in shown
    lines = ["".join(line.split()) for line in shown.splitlines()]
    assert "│pass@1│30.0%│80.0%│+50.0%[+50.0,+50.0]│*│" in lines
    assert "│source1(5)│││││" in lines
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["overall"]["figures"]["pass@1"]["difference"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert result["sources"]["source 0"]["figures"]["pass@1"]["excludes_zero"] is True
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "there is no eval.json. `maxpo evaluate MODEL FILE.yaml --out DIR` writes one." in capsys.readouterr().err

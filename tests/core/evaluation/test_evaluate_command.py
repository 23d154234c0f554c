"""`maxpo evaluate`: which model is meant, and where the results go. The rest is in tests/integration/test_cli.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from launch.run.destination import new_folder
from launch.terminal.tables import one_line, report_table
from maxpo.errors import InputError
from maxpo.evaluation.measure import prompt_result
from maxpo.evaluation.report import report
from tests.core.loop.test_loop import config, run
from tests.fakes import FakeRollouts, scored


def test_a_run_folder_without_an_exported_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    assert main(["evaluate", str(tmp_path), "configs/presets/demo.yaml"]) == 2
    assert "has neither an exported policy nor a checkpoint" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "step_000003").mkdir(parents=True)
    assert main(["evaluate", str(tmp_path), "configs/presets/demo.yaml"]) == 2
    assert f"\n  maxpo export {tmp_path} --to DIR\nand evaluate DIR." in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nowhere"), "configs/presets/demo.yaml"]) == 2
    assert "model.path" in capsys.readouterr().err


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    new_folder(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "log").mkdir()  # of an evaluation that failed
    new_folder(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "eval.json").touch()
    with pytest.raises(InputError, match=r"--out .*folder: the folder already holds eval\.json; name a new folder"):
        new_folder(tmp_path / "new" / "folder")
    with pytest.raises(InputError, match=r"--out .*eval\.json cannot be used"):
        new_folder(tmp_path / "new" / "folder" / "eval.json")


def test_greedy_completions_are_drawn_once_for_each_prompt_where_they_are_wanted(tmp_path: Path) -> None:
    settings = config()
    settings.eval.greedy = True
    rollouts = FakeRollouts(lambda p: 1.0 if p.prompt_id == "e1" else 0.3)
    result, _, lines = run(tmp_path, settings, rollouts)
    drawn = [(names, count) for draw, names, count in rollouts.draws if draw == "eval" and count == 1]
    assert drawn == [(["e0", "e1", "e2"], 1)] * 3
    assert lines[0]["eval/greedy"] == pytest.approx(1 / 3)
    assert 0 <= lines[0]["eval/greedy/low"] < lines[0]["eval/maj@16"] <= 1
    assert "greedy 33.3 %" in one_line(result.evaluations[0])


def test_graded_rewards_are_no_percentages() -> None:
    evaluated = report([prompt_result(scored([0.25, 1.5]))], [2])
    assert one_line(evaluated) == "pass@2 100.0 % [100.0, 100.0]  max@2 1.500 [1.500, 1.500]"
    table = report_table([evaluated, evaluated], ["step 0", "step 3"])
    cells = {str(name): str(value) for name, value in zip(*[column.cells for column in table.columns[:2]], strict=True)}
    assert cells["all prompts (1)"] == ""
    assert cells["avg@2"] == "0.875 [0.875, 0.875]"
    assert cells["pass@2"] == "100.0 % [100.0, 100.0]"

"""Paths of a run: the same from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launch.cluster.paths import with_absolute_paths
from launch.commands.settings import settings_of_run
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.writing import to_yaml

ROWS = '{"prompt": "1 + 1 =", "answer": "2"}\n'


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedConfig:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "zero.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROWS", "rows.jsonl")
    settings = ["model.path=model", "learner.deepspeed=zero.json", "run.name=x", "run.dir=runs", "run.steps=1"]
    settings += ["data.train=[{source: rows.jsonl}, {source: owner/dataset}]", "data.eval_file=${oc.env:ROWS}"]
    settings += ["reward.verifier=exact", "rollout.max_new_tokens=4", "learner.lr=1e-5"]
    return load_config([], settings)


def test_settings_have_absolute_paths_and_their_file_can_be_read_from_elsewhere(
    loaded: LoadedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(with_absolute_paths(loaded)))
    written = yaml.safe_load(file.read_text())
    assert written["model"]["path"] == str(tmp_path / "model")
    assert written["learner"]["deepspeed"] == str(tmp_path / "zero.json")
    assert written["run"]["dir"] == str(tmp_path / "runs")
    assert [entry["source"] for entry in written["data"]["train"]] == [str(tmp_path / "rows.jsonl"), "owner/dataset"]
    assert written["data"]["eval_file"] == "${oc.env:ROWS}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("ROWS", "../rows.jsonl")
    assert load_config([file], []).config.model.path == str(tmp_path / "model")


def test_the_paths_of_a_job_stay_as_they_are(loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # a job's files are where its workers start
    assert with_absolute_paths(loaded) is loaded


@pytest.mark.parametrize("name", ["a, {b}: [c] #d", "x=${y}", "007", "null", 'say "hi"', "ä"])
def test_a_run_folder_of_any_name_is_found(name: str, tmp_path: Path) -> None:
    run = tmp_path / name / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(Path("tests/stored/run/config.yaml").read_text())
    config = settings_of_run(run, []).config
    assert (config.run.dir, config.run.name) == (str(tmp_path / name), name)

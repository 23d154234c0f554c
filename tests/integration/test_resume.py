"""A real run that is killed, or told to stop, and resumed: the same figures and weights as one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from maxpo.checkpoint import Checkpoints
from tests.integration.test_cli import MAXPO, SMALL, environment, maxpo

SETTINGS = [*SMALL, "run.steps=6", "checkpoint.every=1", "algorithm.k_schedule=adaptive", "algorithm.k_values=[1,6]"]


def command(folder: Path) -> list[str]:
    return ["train", "configs/presets/demo.yaml", f"run.dir={folder}", "run.name=run", *SETTINGS]


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock and the memory say."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "throughput", "memory")
    plain = [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]
    return [row for row in plain if set(row) != {"step"}]


def assert_same_run(run: Path, whole: Path) -> None:
    assert figures(run) == figures(whole)
    got, want = (load_file(folder / "policy" / "model.safetensors") for folder in (run, whole))
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = maxpo(*command(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def until_step(run: Path, step: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start the run; returns when the checkpoint of `step` is there."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [MAXPO, *command(folder)], stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / f"step_{step:06d}").is_dir():
        assert process.poll() is None, (folder / "output.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_killed_with_everything_it_started_and_resumed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = until_step(run, 3, tmp_path)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()
    process.wait()
    assert not (run / "checkpoints" / "step_000006").exists()
    done = maxpo("resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    assert_same_run(run, whole)

    exported = tmp_path / "exported"
    done = maxpo("export", str(run), "--step", "6", "--to", str(exported))
    assert done.returncode == 0, done.stderr
    got, want = (load_file(folder / "model.safetensors") for folder in (exported, run / "policy"))
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert {p.name for p in exported.iterdir()} == {p.name for p in (run / "policy").iterdir()}
    for arguments, message in (
        (["--to", str(exported)], "exists already"),
        (["--step", "1", "--to", str(tmp_path / "x")], "has checkpoints of steps [5, 6]"),
    ):
        refused = maxpo("export", str(run), *arguments)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr


def test_sigterm_saves_and_asks_to_be_started_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = until_step(run, 2, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 75, (tmp_path / "output.txt").read_text()[-3000:]
    text = (tmp_path / "output.txt").read_text()
    assert "SIGTERM: stopping after this step" in text
    assert "go on with: maxpo resume" in text
    assert "Traceback" not in text
    # A setting that may change is shown; the seed may not. The number of engines changes nothing of the result.
    refused = maxpo("resume", str(run), "run.seed=1")
    assert refused.returncode == 2
    assert "run.seed: 0 in the checkpoint, 1 now" in refused.stderr
    done = maxpo("resume", str(run), "tracking.save_rollouts=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: tracking.save_rollouts: 1 -> 0" in done.stdout
    assert_same_run(run, whole)


def test_a_learner_that_dies_ends_the_run_with_what_to_do_next(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = until_step(run, 2, tmp_path)
    learner = next(p for p in psutil.Process(process.pid).children(recursive=True) if "LearnerWorker" in _title(p))
    learner.kill()
    assert process.wait(timeout=120) == 1
    text = (tmp_path / "output.txt").read_text()
    assert "learner rank 0 failed while" in text
    assert f"The output of the workers is in {run / 'log'}." in text
    assert "Traceback" not in text
    newest = Checkpoints(run / "checkpoints").newest_good()[0]
    assert newest is not None
    assert f"The last good checkpoint is {newest}; go on with: maxpo resume {run}" in text
    # From the checkpoint by its absolute name, into the same folder, which must not be taken for a new run.
    again = ["configs/presets/demo.yaml", f"run.dir={tmp_path}", "run.name=run", *SETTINGS]
    done = maxpo("train", *again, f"checkpoint.resume={newest.resolve()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(run, whole)


def _title(process: psutil.Process) -> str:
    """Its command line; Ray puts the actor's class there."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""

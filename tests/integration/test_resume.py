"""A real run that is killed, or told to stop, and resumed: the same figures and weights as one that never was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from launch.run.folder import open_run
from maxpo.checkpoints.local import Checkpoints
from maxpo.configure.loading import load_config
from tests.integration.commands import MAXPO, InProcess, environment, maxpo, training
from tests.integration.conftest import Run


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock and the memory say."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "throughput", "memory", "pipeline")
    plain = [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]
    return [row for row in plain if set(row) != {"step"}]


def assert_same_run(run: Path, whole: Path) -> None:
    assert figures(run) == figures(whole)
    got, want = (load_file(folder / "policy" / "model.safetensors") for folder in (run, whole))
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


@pytest.fixture
def whole(trained: Run) -> Path:
    return trained.folder


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [MAXPO, *training(folder), *overrides],
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        )


def until_output(text: str, folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the run has printed `text`; all that it has printed."""
    deadline = time.monotonic() + 240
    while text not in (printed := (folder / "output.txt").read_text()):
        assert process.poll() is None, printed[-3000:]
        assert time.monotonic() < deadline, printed[-3000:]
        time.sleep(0.01)
    return printed


def learner_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    family = psutil.Process(process.pid).children(recursive=True)
    return next(p for p in family if "LearnerWorker" in _title(p))


def until_step(run: Path, step: int, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the checkpoint of `step`."""
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / f"step_{step:06d}").is_dir():
        assert process.poll() is None, (folder / "output.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dead_learner_starts_again_and_a_run_killed_with_all_its_processes_resumes(
    whole: Path, tmp_path: Path, in_process: InProcess
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, "learner.max_restarts=1")
    until_step(run, 2, tmp_path, process)
    learner_of(process).kill()
    text = until_output("going on from", tmp_path, process)
    assert re.search(r"learner rank 0 died while .*its output: .*/log/learner-rank-0\.log", text)
    assert "starting the learner again; 0 restarts are left" in text
    until_step(run, Checkpoints(run / "checkpoints").steps()[-1] + 1, tmp_path, process)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()
    for member in family:
        member.kill()
    process.wait()
    # The output of the workers outlives them, that of the replacement after that of the first one.
    assert len(re.findall(r"^--- process \d+$", (run / "log" / "learner-rank-0.log").read_text(), re.MULTILINE)) == 2
    assert "vLLM" in (run / "log" / "rollout-worker-0.log").read_text()
    assert not (run / "checkpoints" / "step_000006").exists()
    # With checkpoints written in the background, which changes nothing of the result.
    done = maxpo("resume", str(run), "checkpoint.asynchronous=true", "checkpoint.policy=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    assert "changed: checkpoint.asynchronous: false -> true" in done.stdout
    assert_same_run(run, whole)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("time/checkpoint_write_s" in row for row in rows) >= 2
    inside, outside = (
        load_file(folder / "policy" / "model.safetensors") for folder in (run / "checkpoints" / "step_000006", run)
    )
    assert all(torch.equal(inside[name], outside[name]) for name in outside)

    exported = tmp_path / "exported"
    done = in_process("export", str(run), "--step", "6", "--to", str(exported))
    assert done.returncode == 0, done.stderr
    got, want = (load_file(folder / "model.safetensors") for folder in (exported, run / "policy"))
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert {p.name for p in exported.iterdir()} == {p.name for p in (run / "policy").iterdir()}
    for arguments, message in (
        (["--to", str(exported)], "exists already"),
        (["--step", "1", "--to", str(tmp_path / "x")], "has checkpoints of steps [5, 6]"),
    ):
        refused = in_process("export", str(run), *arguments)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr


def test_ctrl_c_saves_and_another_layout_goes_on(whole: Path, tmp_path: Path, in_process: InProcess) -> None:
    """SIGTERM, which asks for the same, reaches a real run in `test_cluster.py`."""
    run = tmp_path / "run"
    process = start(tmp_path)
    until_step(run, 2, tmp_path, process)
    # As a terminal does it: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130, (tmp_path / "output.txt").read_text()[-3000:]
    text = (tmp_path / "output.txt").read_text()
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in text
    assert (run / "policy" / "model.safetensors").is_file()
    assert "go on with: maxpo resume" in text
    assert "Traceback" not in text
    # A setting that may change is shown; the seed may not.
    refused = in_process("resume", str(run), "run.seed=1")
    assert refused.returncode == 2
    assert "run.seed: 0 in the checkpoint, 1 now" in refused.stderr
    # Another number of engines and ranks and another stage sum up in another order, so the last bits differ.
    before = len(figures(run))
    # From the checkpoint by its absolute name, into the same folder, which must not be taken for a new run.
    newest = Checkpoints(run / "checkpoints").newest_good()[0]
    assert newest is not None
    other = ["rollout.workers=2", "learner.ranks=2", "learner.zero_stage=1"]
    done = maxpo(*training(tmp_path), *other, f"checkpoint.resume={newest.resolve()}")
    assert done.returncode == 0, done.stdout + done.stderr
    for change in ("rollout.workers: 1 -> 2", "learner.ranks: 1 -> 2", "learner.zero_stage: 2 -> 1"):
        assert f"changed: {change}" in done.stdout
    ours, theirs = figures(run), figures(whole)
    assert len(ours) == len(theirs)
    assert ours[:before] == theirs[:before]
    first, same = (next(row for row in rows[before:] if "train/loss" in row) for rows in (ours, theirs))
    assert first["reward/mean"] == same["reward/mean"]
    assert first["train/optimizer_steps"] == same["train/optimizer_steps"]
    assert first["train/grad_norm"] == pytest.approx(same["train/grad_norm"], rel=1e-4)


def test_ctrl_c_during_the_start_ends_it_at_once_and_leaves_the_name_free(tmp_path: Path) -> None:
    process = start(tmp_path)
    log = tmp_path / "run" / "log" / "rollout-worker-0.log"
    deadline = time.monotonic() + 240
    while not log.exists():  # the engine is starting, and its output is there already
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    text = (tmp_path / "output.txt").read_text()
    assert "maxpo: stopped at once" in text and "evaluation at step 0" not in text and "Traceback" not in text, text
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    _, *settings = training(tmp_path)
    open_run(load_config([Path(settings[0])], settings[1:]), Console())  # without run.overwrite


def test_a_run_without_progress_ends_and_says_who_waits_for_whom(tmp_path: Path) -> None:
    """And until then a second process cannot train it."""
    run = tmp_path / "run"
    process = start(tmp_path, "run.steps=1000", "run.stall_timeout_s=15", "eval.at_start=false")
    until_output("step 2 ", tmp_path, process)
    # A second process cannot train the same run meanwhile.
    refused = maxpo(*training(tmp_path), "run.overwrite=true")
    assert refused.returncode == 2
    assert f"{run} is in use by process {process.pid} on " in refused.stderr
    learner = learner_of(process)
    learner.suspend()
    assert process.wait(timeout=120) == 1
    text = (tmp_path / "output.txt").read_text()
    assert re.search(
        r"maxpo: no progress for run.stall_timeout_s = 15 s in stage (update|sync|evaluate|checkpoint):", text
    ), text[-3000:]
    doing = r"(step \d+|sending weights|scoring samples|writing a checkpoint)"
    assert re.search(rf"waits for learner rank 0, {doing}: \d+ s of at most 1[28]00 s", text)
    report = (run / "log" / "stalled.txt").read_text()
    assert re.search(rf"ray::LearnerWorker.*: process {learner.pid}, stopped", report)
    assert re.search("in (wait_for|serve)", report)  # an update is waited for beside sampling
    # A worker that is not stopped has printed where it is.
    assert "Thread 0x" in (run / "log" / "rollout-worker-0.log").read_text()


def _title(process: psutil.Process) -> str:
    """Its command line; Ray puts the actor's class there."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""

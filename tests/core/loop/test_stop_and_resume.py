"""Signals that ask for a stop, and where a run goes on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from launch.cli import main
from launch.cluster.ray_cluster import own_sigterm
from launch.run.folder import open_run
from launch.run.resuming import describe_changes, find_checkpoint
from launch.run.signals import PreemptedError, StopTooLateError, stop_on_signal
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.remote import RemoteStore, RemoteStoreError
from maxpo.config import CheckpointConfig, Config
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.errors import CheckpointError


def console() -> Console:
    return Console(file=StringIO(), width=200)


def said(where: Console) -> str:
    assert isinstance(where.file, StringIO)
    return where.file.getvalue()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)], ids=str
)
def test_a_signal_asks_once_and_leaves_the_handlers_as_they_were(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)]
    out = console()
    with stop_on_signal(out, within_s=60) as request:
        assert not request.asked()
        os.kill(os.getpid(), number)
        assert request.asked()
        assert request.exit_code == code
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)  # asking again changes nothing
        else:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert said(out).count("stopping after this step") == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)] == before


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, PreemptedError)], ids=str
)
def test_before_the_first_step_a_signal_ends_the_run_at_once(
    number: signal.Signals, error: type[BaseException]
) -> None:
    out = console()
    with pytest.raises(error), stop_on_signal(out, within_s=60):
        os.kill(os.getpid(), number)
        time.sleep(30)
    assert said(out) == ""


def test_a_stop_that_takes_too_long_ends_the_run() -> None:
    with (
        pytest.raises(StopTooLateError, match=r"did not end within checkpoint\.stop_within_s = 0\.05 s"),
        stop_on_signal(console(), within_s=0.05) as request,
    ):
        assert not request.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def test_sigterm_that_somebody_takes_is_given_back() -> None:
    mine = signal.getsignal(signal.SIGTERM)
    with own_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == mine


def with_checkpoints(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=9, attached={"config.yaml": "run: {seed: 0, steps: 5}\n"}
    )
    for step in steps:
        checkpoints.write(step, {"step": step}, {}, lambda f: lambda: None)
    return checkpoints


def asking(resume: str) -> Config:
    return Config(checkpoint=CheckpointConfig(resume=resume))


def test_where_a_run_goes_on_from(tmp_path: Path) -> None:
    out = console()
    assert find_checkpoint(asking("auto"), Checkpoints(tmp_path / "checkpoints"), out) is None
    with pytest.raises(CheckpointError, match="has no checkpoint to go on from"):
        find_checkpoint(asking("must"), Checkpoints(tmp_path / "checkpoints"), out)
    folder = with_checkpoints(tmp_path, 1, 2).folder
    assert find_checkpoint(asking("never"), Checkpoints(tmp_path / "checkpoints"), out) is None
    assert find_checkpoint(asking("auto"), Checkpoints(tmp_path / "checkpoints"), out) == folder / "step_000002"
    assert find_checkpoint(asking("must"), Checkpoints(tmp_path / "checkpoints"), out) == folder / "step_000002"
    assert (
        find_checkpoint(asking(str(folder / "step_000001")), Checkpoints(tmp_path / "checkpoints"), out)
        == folder / "step_000001"
    )


def test_a_damaged_checkpoint_is_reported_by_auto_and_refused_by_must(tmp_path: Path) -> None:
    folder = with_checkpoints(tmp_path, 1, 2).folder
    (folder / "step_000002" / "state.json").write_text("{}")
    out = console()
    assert find_checkpoint(asking("auto"), Checkpoints(tmp_path / "checkpoints"), out) == folder / "step_000001"
    assert "damaged checkpoint left out" in said(out)
    assert "step_000002/state.json: 2 bytes, changed" in said(out)
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*state\.json.*checkpoint\.resume=.*step_000001"):
        find_checkpoint(asking("must"), Checkpoints(tmp_path / "checkpoints"), out)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        find_checkpoint(asking(str(folder / "step_000002")), Checkpoints(tmp_path / "checkpoints"), out)
    # Nothing good is left: auto does not start anew over what may still be rescued.
    (folder / "step_000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)state\.json.*state\.json: missing"):
        find_checkpoint(asking("auto"), Checkpoints(tmp_path / "checkpoints"), out)


def test_changed_settings_are_shown_and_some_refused(tmp_path: Path) -> None:
    checkpoint = with_checkpoints(tmp_path, 1).folder / "step_000001"
    out = console()
    describe_changes(checkpoint, "run: {seed: 0, steps: 9, name: other}\nlearner: {lr: 0.1}\n", out)
    assert said(out).splitlines() == ["changed: learner.lr: null -> 0.1", "changed: run.steps: 5 -> 9"]
    with pytest.raises(CheckpointError, match=r"(?s)must not change:.*run\.seed: 0 in the checkpoint, 3 now"):
        describe_changes(checkpoint, "run: {seed: 3, steps: 5}\n", out)


def test_auto_never_replaces_a_finished_run(tmp_path: Path) -> None:
    arguments = ["train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", "run.overwrite=false"]
    exported = tmp_path / "demo" / "policy" / "model.safetensors"
    exported.parent.mkdir(parents=True)
    exported.write_text("weights")
    assert main([*arguments, "checkpoint.resume=auto"]) == 2
    assert exported.read_text() == "weights"


class Broken:
    """A store that fails."""

    def steps(self) -> list[int]:
        raise RemoteStoreError("s3://b: listing checkpoints failed: timed out")

    def upload(self, checkpoint: Path) -> None:
        raise RemoteStoreError("s3://b: uploading failed: timed out")

    def download(self, step: int, folder: Path) -> Path:
        raise AssertionError

    def prune(self, keep: object) -> None:
        raise AssertionError


def settings_for(folder: Path, *overrides: str) -> LoadedConfig:
    url = (folder / "bucket").as_uri()
    return load_config(
        [Path("configs/presets/demo.yaml")], [f"run.dir={folder}", f"checkpoint.remote={url}", *overrides]
    )


def test_a_run_folder_that_is_lost_comes_back_from_the_remote_copy(tmp_path: Path) -> None:
    out = console()
    folder, source, checkpoints = open_run(settings_for(tmp_path), out)
    assert source is None
    for step in (1, 2, 3):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": 0.0}) + "\n")
        checkpoints.write(step, {"step": step}, {}, lambda f: lambda: (f / "w").write_text("weights") and None)
    assert checkpoints.missing_copy is None
    assert checkpoints.poll() == {"checkpoint/copies_failed": 0.0}
    assert sorted(p.name for p in (tmp_path / "bucket" / "demo").iterdir()) == ["LATEST", "step_000002", "step_000003"]
    shutil.rmtree(folder)
    folder, source, _ = open_run(settings_for(tmp_path, "checkpoint.resume=auto"), out)
    assert source is not None and source == folder / "checkpoints" / "step_000003"
    assert (source / "w").read_text() == "weights"
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert "fetched step_000003 from file://" in said(out)
    # What is damaged here is replaced by the copy, and is then no reason to refuse.
    (source / "w").write_text("Weights")
    assert open_run(settings_for(tmp_path, "checkpoint.resume=must"), out)[1] == source
    assert (source / "w").read_text() == "weights"
    # Where both are damaged, it is said of both, and the one before is taken.
    (source / "w").write_text("Weights")
    (tmp_path / "bucket" / "demo" / "step_000003" / "w").write_text("Weights")
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*/checkpoints/step_000003/w.*bucket/demo/step_000003/w"):
        open_run(settings_for(tmp_path, "checkpoint.resume=must"), out)
    before = source.with_name("step_000002")
    assert open_run(settings_for(tmp_path, "checkpoint.resume=auto"), out)[1] == before
    # Nothing takes the damaged one for the newest any more.
    assert sorted(p.name for p in before.parent.glob("*_0*")) == ["damaged_000003", "step_000002"]
    assert "damaged checkpoint set aside: " in said(out)


def test_going_back_needs_another_name_while_there_are_newer_checkpoints(tmp_path: Path) -> None:
    out = console()
    folder, _, checkpoints = open_run(settings_for(tmp_path), out)
    for step in (1, 2):
        checkpoints.write(step, {"step": step}, {}, lambda f: lambda: None)
    first = folder / "checkpoints" / "step_000001"
    asked = f"checkpoint.resume={first}"
    with pytest.raises(
        CheckpointError, match=r"not the newest checkpoint of its run, which also has those of steps \[2\]: .*run.name"
    ):
        open_run(settings_for(tmp_path, asked), out)
    assert checkpoints.steps() == [1, 2]
    assert open_run(settings_for(tmp_path, asked, "run.name=other"), out)[1] == first
    # Also where only the copy has the newer one.
    shutil.rmtree(folder / "checkpoints" / "step_000002")
    with pytest.raises(CheckpointError, match=r"also has those of steps \[2\]"):
        open_run(settings_for(tmp_path, asked), out)


def test_what_must_proposes_works(tmp_path: Path) -> None:
    out = console()
    folder, _, checkpoints = open_run(settings_for(tmp_path), out)
    for step in (1, 2):
        checkpoints.write(step, {"step": step}, {}, lambda f: lambda: None)
    for damaged in (folder / "checkpoints", tmp_path / "bucket" / "demo"):
        (damaged / "step_000002" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"name it with (checkpoint\.resume=.*step_000001)") as refusal:
        open_run(settings_for(tmp_path, "checkpoint.resume=must"), out)
    named = str(refusal.value).rpartition("name it with ")[2]
    assert open_run(settings_for(tmp_path, named), out)[1] == folder / "checkpoints" / "step_000001"


def test_removing_here_removes_there_and_nothing_else(tmp_path: Path) -> None:
    """A folder that was lost comes back with its newest checkpoint alone; the others stay where they are."""
    store = RemoteStore((tmp_path / "bucket").as_uri(), {})
    first = Checkpoints(tmp_path / "a", keep_last=3, remote=store)
    for step in (1, 2, 3):
        first.write(step, {}, {}, lambda f: lambda: None)
    again = Checkpoints(tmp_path / "b", keep_last=2, remote=store)
    assert again.newest_good(fetch=True)[0] == tmp_path / "b" / "step_000003"
    again.write(4, {}, {}, lambda f: lambda: None)
    assert store.steps() == [1, 2, 3, 4]
    again.write(5, {}, {}, lambda f: lambda: None)
    assert (again.steps(), store.steps()) == ([4, 5], [1, 2, 4, 5])


def test_what_was_just_written_is_never_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step in (7, 3):
        checkpoints.write(step, {}, {}, lambda f: lambda: None)
    assert checkpoints.steps() == [3, 7]
    assert [p.name for p in checkpoints.set_aside(newer_than=3)] == ["damaged_000007"]
    assert checkpoints.newest_good() == (tmp_path / "step_000003", [])


def test_a_copy_that_fails_is_told_and_counted_and_costs_no_checkpoint(tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, remote=Broken(), say=told.append)
    for step in (1, 2):
        checkpoints.write(step, {}, {}, lambda f: lambda: None)
    assert told == [f"the checkpoint of step {n} has no copy: s3://b: uploading failed: timed out" for n in (1, 2)]
    assert checkpoints.poll() == {"checkpoint/copies_failed": 2.0}
    assert checkpoints.missing_copy == "s3://b: uploading failed: timed out"
    assert checkpoints.newest_good() == (tmp_path / "step_000002", [])
    with pytest.raises(RemoteStoreError):  # nobody knows whether the store has a newer one
        checkpoints.newest_good(fetch=True)
    checkpoints._remote = RemoteStore((tmp_path / "bucket").as_uri(), {})
    checkpoints.write(3, {}, {}, lambda f: lambda: None)
    assert checkpoints.missing_copy is None

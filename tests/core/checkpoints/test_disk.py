"""Disks that are full or read-only: real ones, of a few hundred KiB, where this machine lets us mount them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.cli import main
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import verify
from maxpo.errors import RunError
from maxpo.tracking.run_log import RunLog
from tests.fakes import scored


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "maxpo-test", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def checkpoint_of(size: int) -> Callable[[Path], Callable[[], None]]:
    def copy(folder: Path) -> Callable[[], None]:
        def write() -> None:
            (folder / "w.bin").write_bytes(b"w" * size)

        return write

    return copy


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_one_clear_error_and_costs_no_older_checkpoint(small_disk: Path, asynchronous: bool) -> None:
    checkpoints = Checkpoints(small_disk / "c", asynchronous=asynchronous)
    checkpoints.write(1, {}, {}, checkpoint_of(100_000))
    checkpoints.wait()
    with pytest.raises(RunError, match=r"the checkpoint of step 2 could not be written to .*/c: .*No space left"):
        checkpoints.write(2, {}, {}, checkpoint_of(300_000))
        checkpoints.wait()
    verify(small_disk / "c" / "step_000001")
    assert {p.name for p in (small_disk / "c").iterdir()} == {"step_000001", "LATEST"}  # what was begun is removed
    checkpoints.write(3, {}, {}, checkpoint_of(50_000))
    checkpoints.wait()
    assert checkpoints.newest_good() == (small_disk / "c" / "step_000003", [])


def test_a_read_only_disk_is_one_clear_error(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(small_disk / "c")
    checkpoints.write(1, {}, {}, checkpoint_of(1000))
    log = RunLog(small_disk, tensorboard=False, save_rollouts=1)
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(RunError, match=r"could not be written to .*Read-only file system"):
        checkpoints.write(2, {}, {}, checkpoint_of(1000))
    for call, file in (
        (lambda: log.log(1, {"reward/mean": 0.5}), "metrics.jsonl"),
        (lambda: log.log_rollouts("step_000001", [scored([1.0])]), "step_000001.jsonl"),
    ):
        with pytest.raises(RunError, match=rf"{file} could not be written: Read-only file system"):
            call()
    verify(small_disk / "c" / "step_000001")
    assert main(["train", "configs/presets/demo.yaml", f"run.dir={small_disk}"]) == 2
    error = capsys.readouterr().err
    assert f"run.dir = {small_disk} cannot be written: " in error
    assert "Read-only file system" in error
    assert "Traceback" not in error


def test_metrics_that_do_not_fit_any_more_are_one_clear_error(tmp_path: Path) -> None:
    """/dev/full says that the disk is full whenever something is written to it."""
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=1)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.jsonl could not be written: No space left on device"):
        log.log(1, {"reward/mean": 0.5})


def test_a_line_that_was_cut_off_by_a_full_disk_is_removed_on_resume(tmp_path: Path) -> None:
    rows = [json.dumps({"step": step, "time": 0.0, "reward/mean": 0.5}) + "\n" for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows) + rows[1][:20])
    RunLog(tmp_path, tensorboard=False, save_rollouts=0, resumed_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(rows)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]

"""Storage that behaves badly while a run goes on: no atomic renames, no flush of folders, full, or gone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import verify
from maxpo.errors import RunError
from maxpo.tracking.run_log import RunLog
from tests.core.checkpoints.test_checkpoint import Killed, lines, run
from tests.core.checkpoints.test_disk import small_disk

__all__ = ["small_disk"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder).weights, lines(folder)


@pytest.fixture
def slow_renames(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Renames of folders that copy file by file and then remove, as a mounted object store does.

    The first entry of the list is the number of files until the process dies.
    """
    left = [10**9]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def rename(self: Path, target: Path) -> Path:
        for part in sorted([self, *self.rglob("*")]):
            step()
            new = target / part.relative_to(self)
            if part.is_dir():
                new.mkdir(exist_ok=True)
            else:
                new.write_bytes(part.read_bytes()[: part.stat().st_size // 2])  # half of it, if the process dies here
                step()
                shutil.copyfile(part, new)
        step()
        shutil.rmtree(self) if self.is_dir() else self.unlink()
        return target

    monkeypatch.setattr(Path, "rename", rename)
    yield left


def test_a_death_in_a_rename_that_is_not_atomic_costs_one_checkpoint_at_most(
    slow_renames: list[int], whole: tuple[int, list[dict[str, Any]]], tmp_path: Path
) -> None:
    for files in range(1, 60, 3):
        folder = tmp_path / str(files)
        run(folder, stop_after=2)
        before = Checkpoints(folder / "checkpoints").steps()
        slow_renames[0] = files
        run(folder)
        slow_renames[0] = 10**9
        good, _ = Checkpoints(folder / "checkpoints").newest_good()
        assert good is not None and int(good.name[5:]) >= max(before), files
        assert run(folder).weights == whole[0], files
        assert lines(folder) == whole[1], files


def test_a_file_system_that_cannot_flush_a_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[int, list[dict[str, Any]]]
) -> None:
    flush = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run(tmp_path).weights == whole[0]


def test_a_disk_that_fills_during_a_run_is_one_error_and_the_run_goes_on_later(
    small_disk: Path, whole: tuple[int, list[dict[str, Any]]]
) -> None:
    folder, filler = small_disk / "run", small_disk / "of somebody else"
    run(folder, stop_after=2)
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * max(0, free - 12 * 1024))
    with pytest.raises(RunError, match="No space left on device"):
        run(folder)
    good, _ = Checkpoints(folder / "checkpoints").newest_good()
    assert good is not None
    verify(good)
    filler.unlink()
    assert run(folder).weights == whole[0]
    assert lines(folder) == whole[1]


def test_a_run_folder_that_is_removed_during_the_run_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "run", RunLog.log

    def logging(self: RunLog, step: int, metrics: Any) -> None:
        if step == 3:
            shutil.rmtree(folder)
        log(self, step, metrics)

    monkeypatch.setattr(RunLog, "log", logging)
    with pytest.raises(RunError, match=r"run/metrics.jsonl could not be written: No such file or directory"):
        run(folder)

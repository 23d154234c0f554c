"""Files and folders that are replaced as a whole, and the names of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxpo.files import recover, replacing, step_name, step_of

KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from maxpo.files import replacing

rename, left = Path.rename, [int(sys.argv[2])]
def deadly(self, target):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = deadly
with replacing(Path(sys.argv[1])) as fresh:
    fresh.mkdir()
    for name in ("config", "weights"):
        (fresh / name).write_text("new")
"""


def policy(folder: Path, content: str = "old") -> Path:
    folder.mkdir()
    for name in ("config", "weights"):
        (folder / name).write_text(content)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced_leaves_one_whole(tmp_path: Path, renames: int) -> None:
    target = policy(tmp_path / "policy")
    done = subprocess.run([sys.executable, "-c", KILLED_AT_RENAME, str(target), str(renames)])
    assert done.returncode == (0 if renames == 2 else -9)
    old, new = ({"config": text, "weights": text} for text in ("old", "new"))
    left = {path.name: content(path) for path in tmp_path.iterdir()}
    assert (
        left
        == [
            {"policy": old, ".policy.partial": new},
            {".policy.old": old, ".policy.partial": new},
            {"policy": new},
        ][renames]
    )
    recover(target)
    assert content(target) == (new if renames == 2 else old)
    with replacing(target) as fresh:  # goes on from each of these
        policy(fresh, "newest")
    assert {path.name: content(path) for path in tmp_path.iterdir()} == {"policy": dict.fromkeys(old, "newest")}


def test_after_an_error_the_old_content_stays(tmp_path: Path) -> None:
    target, file = policy(tmp_path / "policy"), tmp_path / "file"
    file.write_text("old")
    for path, write in ((target, policy), (file, lambda path: path.write_text("new"))):
        with pytest.raises(KeyError), replacing(path) as fresh:
            write(fresh)
            raise KeyError
    assert content(target) == {"config": "old", "weights": "old"} and file.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"policy", "file"}


def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = policy(tmp_path / "policy"), Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"), replacing(target) as fresh:
        policy(fresh, "new")
    assert {path.name: content(path) for path in tmp_path.iterdir()} == {"policy": {"config": "old", "weights": "old"}}


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with replacing(tmp_path / "policy") as fresh:
        policy(fresh)
    assert sorted(flushed[:3]) == [".policy.partial", "config", "weights"] and flushed[3:] == [tmp_path.name]


@pytest.mark.parametrize("step", [0, 40, 999_999, 1_000_000])
def test_the_name_of_a_step_is_read_back(step: int) -> None:
    assert step_of(step_name(step)) == step


@pytest.mark.parametrize("name", ["step_1", "step_0000001", "step_notes", "step_", "damaged_000001", ".step_000001"])
def test_other_names_are_of_no_step(name: str) -> None:
    assert step_of(name) is None

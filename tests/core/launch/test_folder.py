"""Run folders: what a start may remove, and checkpoints that somebody has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file

from launch.run.exporting import export_checkpoint
from launch.run.folder import open_run
from launch.run.preflight import load_data
from launch.run.resuming import check_learner_state
from maxpo.checkpoints.manifest import describe, verify
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.data.order import Mixture, PromptStream
from maxpo.errors import InputError, RunError
from maxpo.loop.state import RunResult, restore
from tests.changes import changed

STORED = Path("tests/stored/run")
CONSOLE = Console(file=StringIO())


def stored(tmp_path: Path) -> Path:
    """Return a copy of the stored run, which has a checkpoint of step 2."""
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def settings_of(run: Path, *overrides: str) -> LoadedConfig:
    here = [f"run.dir={run.parent}", f"run.name={run.name}"]
    return load_config([run / "config.yaml"], [*here, *overrides], earlier_run=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def link(inside: Path, target: Path) -> None:
    """Move a folder to another disk, and leave a link to it."""
    inside.rename(target)
    inside.symlink_to(target)


@pytest.mark.parametrize("linked", ["checkpoints", "checkpoints/step_000002", "."])
@pytest.mark.parametrize("named", ["must", "through the link", "where it is"])
def test_a_resume_removes_nothing_if_a_folder_is_a_link(linked: str, named: str, tmp_path: Path) -> None:
    run, scratch = stored(tmp_path), tmp_path / "scratch"
    (run / "notes.txt").write_text("mine")
    link(run / linked if linked != "." else run, scratch)
    checkpoint = run / "checkpoints/step_000002"
    resume = {"must": "must", "through the link": checkpoint, "where it is": checkpoint.resolve()}[named]
    before = content(run), content(scratch)
    loaded = settings_of(run, f"checkpoint.resume={resume}", "run.overwrite=true")
    _, source, _ = open_run(loaded, CONSOLE)
    assert source is not None and source.samefile(checkpoint)
    after = content(run), content(scratch)
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in new.items() if k != "config.yaml"} == {
            k: v for k, v in old.items() if k != "config.yaml"
        }


def test_a_checkpoint_of_another_run_starts_a_new_folder_and_leaves_that_run_alone(tmp_path: Path) -> None:
    other = stored(tmp_path)
    before = content(other)
    loaded = settings_of(other, f"checkpoint.resume={other / 'checkpoints/step_000002'}", "run.name=new")
    folder, _, _ = open_run(loaded, CONSOLE)
    assert folder == tmp_path / "new" and content(other) == before


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_start_that_failed_leaves_the_name_free(resume: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("log/learner-0.log", "tensorboard/events", "checkpoints/.step_000001.partial/learner/x"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("left over")
    (run / "metrics.jsonl").write_text("")
    shutil.copy(STORED / "config.yaml", run)
    open_run(settings_of(run, f"checkpoint.resume={resume}", "run.overwrite=false"), CONSOLE)
    assert content(run).keys() == {"config.yaml"}


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "rollouts/step_000001.jsonl", "policy/config.json", "checkpoints/damaged_000001/x", "mine"],
)
def test_a_run_with_results_or_files_of_others_is_not_replaced(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("something")
    shutil.copy(STORED / "config.yaml", run)
    before = content(run)
    with pytest.raises(InputError, match=rf"{run} exists already and holds {'/'.join(name.split('/')[:-1]) or name}"):
        open_run(settings_of(run, "checkpoint.resume=never", "run.overwrite=false"), CONSOLE)
    assert content(run) == before


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("name", ["checkpoints", "policy"])
def test_a_link_to_a_disk_that_is_not_mounted_is_kept(name: str, resume: str, tmp_path: Path) -> None:
    run = stored(tmp_path)
    shutil.rmtree(run / "checkpoints")
    (run / name).symlink_to(tmp_path / "not mounted")
    with pytest.raises(InputError, match=f"holds {name}, a link to .*not mounted, which is not there"):
        open_run(settings_of(run, f"checkpoint.resume={resume}", "run.overwrite=false"), CONSOLE)
    assert (run / name).is_symlink() and (run / "metrics.jsonl").exists()


def test_a_run_folder_that_is_a_link_or_a_file(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    run.symlink_to(scratch)
    shutil.copy(STORED / "config.yaml", scratch)
    (scratch / "old").write_text("x")
    open_run(settings_of(run, "run.overwrite=true"), CONSOLE)
    assert run.is_symlink() and content(scratch).keys() == {"config.yaml"}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        open_run(settings_of(run, "run.overwrite=true", "run.name=file"), CONSOLE)
    assert file.read_text() == "mine"


def rehash(checkpoint: Path) -> None:
    """Make the manifest fit the files."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {
        str(p.relative_to(checkpoint)): describe(p)
        for p in checkpoint.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def prompts() -> Mixture:
    """The training prompts of the stored run."""
    return load_data(settings_of(STORED.absolute()).config)[0]


def resume(run: Path, prompts: Mixture) -> None:
    """Do what a resume does before anything is started."""
    loaded = settings_of(run, "checkpoint.resume=must", "run.overwrite=false")
    _, source, _ = open_run(loaded, CONSOLE)
    assert source is not None
    restore(source, RunResult(), PromptStream(prompts, loaded.config.run.seed))
    check_learner_state(loaded.config, source)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another step": (
        lambda c: edit(c / "manifest.json", lambda m: m | {"step": 150}),
        "step 150, but it is that of step_000002",
    ),
    "no files": (lambda c: edit(c / "manifest.json", lambda m: m | {"files": None}), "files: Input should be"),
    "a bool as step": (lambda c: edit(c / "manifest.json", lambda m: m | {"step": True}), "step: Input should be"),
    "no state": (lambda c: edit(c / "state.json", lambda s: {}), "state.json: cannot be read .step: Field required"),
    "a nested state": (lambda c: (c / "state.json").write_text("[" * 100_000), "state.json: cannot be read"),
    "a state of text": (lambda c: edit(c / "state.json", lambda s: s | {"version": "2"}), "version: Input should be"),
    "no settings": (lambda c: (c / "config.yaml").write_text("3"), "does not hold the settings of a run"),
    "no names": (lambda c: edit(c / "learner/meta.json", lambda m: m | {"names": []}), "names of parameters differ"),
    "no optimizer": (lambda c: edit(c / "learner/meta.json", lambda m: m | {"extra": {}}), "optimizer_steps: Field"),
    "no tensors": (
        lambda c: (c / "learner/state-00000.safetensors").write_bytes(b"\0" * 64),
        "state-00000.safetensors: cannot be read",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_checkpoint_that_somebody_changed_is_one_error_and_costs_nothing(
    case: str, prompts: Mixture, tmp_path: Path
) -> None:
    run = stored(tmp_path)
    checkpoint = run / "checkpoints/step_000002"
    change, message = TAMPERED[case]
    change(checkpoint)
    if case not in ("another step", "no files", "a bool as step"):
        rehash(checkpoint)
    before = content(run)
    with pytest.raises(InputError, match=message):
        resume(run, prompts)
    assert content(run).keys() - {"config.yaml"} == before.keys() - {"config.yaml"}


def test_a_pipe_as_manifest_does_not_hang(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path) / "checkpoints/step_000002"
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")
    with pytest.raises(InputError, match="not a file"):
        verify(checkpoint)


@settings(
    max_examples=int(os.environ.get("MAXPO_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_change_of_a_checkpoint_is_an_input_error_or_harmless(
    tmp_path: Path, prompts: Mixture, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = stored(tmp_path)
    checkpoint = run / "checkpoints/step_000002"
    name = data.draw(st.sampled_from(["manifest.json", "state.json", "learner/meta.json"]))
    document = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps(data.draw(changed(document))))
    if name != "manifest.json":
        rehash(checkpoint)
    before = {k: hashlib.sha256(v).hexdigest() for k, v in content(run).items() if k != "config.yaml"}
    with suppress(InputError):
        resume(run, prompts)
    after = {k: hashlib.sha256(v).hexdigest() for k, v in content(run).items() if k != "config.yaml"}
    assert after == before


def test_weights_that_are_not_finite_are_never_exported(tmp_path: Path) -> None:
    run = stored(tmp_path)
    checkpoint = run / "checkpoints/step_000002"
    file = next((checkpoint / "learner").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("layers.0.mlp.up_proj.weight/master"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file)
    rehash(checkpoint)
    target = tmp_path / "out"
    with pytest.raises(RunError, match=rf"not finite in the number format of the files, first {name[:-7]}"):
        export_checkpoint(settings_of(run).config, run, None, target)
    assert not target.exists() and list(tmp_path.iterdir()) == [run]

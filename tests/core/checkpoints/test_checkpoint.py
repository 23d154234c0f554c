"""Checkpoint folders, and a run that is killed after any step and resumed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_manifest, verify
from maxpo.config import AlgorithmConfig, CheckpointConfig, Config, EvalConfig, RunConfig
from maxpo.data.order import PromptStream
from maxpo.errors import CheckpointError, RunError
from maxpo.loop.observer import Observer
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from tests.fakes import FakeLearner, FakeRollouts, prompt


def write(checkpoints: Checkpoints, step: int, text: str = "weights", **metrics: float) -> Path:
    def fill(folder: Path) -> Callable[[], None]:
        def write_copy() -> None:
            (folder / "learner").mkdir()
            (folder / "learner" / "w.bin").write_text(text)

        return write_copy

    checkpoints.write(step, {"step": step, "text": "ä"}, metrics, fill)
    return checkpoints.folder / f"step_{step:06d}"


def test_a_checkpoint_is_listed_verified_and_pointed_to(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", attached={"config.yaml": "run: {}\n"})
    folder = write(checkpoints, 40, loss=0.5)
    assert folder == tmp_path / "c" / "step_000040"
    assert (tmp_path / "c" / "LATEST").read_text() == "step_000040\n"
    manifest = verify(folder)
    assert (manifest["step"], manifest["metrics"]) == (40, {"loss": 0.5})
    assert set(manifest["files"]) == {"learner/w.bin", "state.json", "config.yaml"}
    assert json.loads((folder / "state.json").read_text(encoding="utf-8")) == {"step": 40, "text": "ä"}
    assert checkpoints.newest_good() == (folder, [])
    assert [p.name for p in (tmp_path / "c").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "learner/w.bin").write_text("Weights"), "learner/w.bin: 7 bytes, changed"),
        (lambda f: (f / "learner/w.bin").write_text("weig"), "learner/w.bin: 4 bytes, changed"),
        (lambda f: (f / "learner/w.bin").unlink(), "learner/w.bin: missing"),
        (lambda f: (f / "more").write_text(""), "more: not in the manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"format": 7}'), "format 7, this version reads 2"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: cannot be read"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path)
    good, bad = write(checkpoints, 1), write(checkpoints, 2)
    damage(bad)
    with pytest.raises(CheckpointError, match=message):
        verify(bad)
    found, wrong = checkpoints.newest_good()
    assert found == good
    assert len(wrong) == 1
    assert message.split(":")[0] in wrong[0]


def test_pruning_keeps_the_newest_the_regular_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4, keep_best="eval/pass@8")
    for step, value in enumerate((0.1, 0.2, 0.9, 0.3, 0.5, 0.2, 0.4, 0.1), start=1):
        write(checkpoints, step, **({"eval/pass@8": value} if step != 2 else {}))
    assert checkpoints.steps() == [3, 4, 7, 8]
    plain = Checkpoints(tmp_path / "plain", keep_last=1)
    for step in (5, 10):
        write(plain, step)
    assert plain.steps() == [10]


def test_a_writer_that_dies_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that changes the disk, once each: whatever was reached, a resume finds a whole checkpoint."""
    checkpoints = Checkpoints(tmp_path / "c", keep_last=1)
    write(checkpoints, 1, "first")

    class Killed(BaseException):
        pass

    names = ("mkdir", "write_text", "rename", "replace")
    reached = 0
    for fatal in range(100):
        calls = 0

        def dying(original: Any, fatal: int = fatal) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > fatal:
                    raise Killed
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(Path, name, dying(getattr(Path, name)))
            try:
                write(checkpoints, 2 + fatal, "later")
            except Killed:
                reached += 1
            else:
                break
        found, wrong = checkpoints.newest_good()
        assert found is not None
        assert wrong == []
        assert (found / "learner/w.bin").read_text() in ("first", "later")
    assert reached >= 7


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    good = write(checkpoints, 1)

    def full(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"checkpoint of step 2 could not be written to .*No space left"):
        checkpoints.write(2, {}, {}, full)
    assert checkpoints.newest_good() == (good, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write(Checkpoints(tmp_path / "file" / "c"), 1)


def test_in_the_background_training_waits_for_the_copy_only(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, asynchronous=True)
    may_write, copied = threading.Event(), [0]

    def fill(folder: Path) -> Callable[[], None]:
        copied[0] += 1

        def write_copy() -> None:
            assert may_write.wait(10)
            (folder / "w").write_text("copy")

        return write_copy

    checkpoints.write(1, {}, {}, fill)
    assert copied == [1]
    assert checkpoints.poll() == {}
    assert (checkpoints.steps(), checkpoints.saved_step) == ([], 0)
    second = threading.Thread(target=lambda: checkpoints.write(2, {}, {}, fill))
    second.start()
    second.join(0.2)
    assert copied == [1]  # one at a time: the second waits for the first
    may_write.set()
    second.join(10)
    assert checkpoints.wait()["time/checkpoint_write_s"] > 0
    assert (checkpoints.steps(), checkpoints.saved_step) == ([1, 2], 2)
    assert (tmp_path / "LATEST").read_text() == "step_000002\n"
    assert checkpoints.wait() == {}


def test_an_error_in_the_background_comes_out_of_the_next_call(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, asynchronous=True)
    write(checkpoints, 1)
    checkpoints.wait()

    def full() -> None:
        raise OSError(28, "No space left on device")

    for call in (checkpoints.wait, lambda: write(checkpoints, 3)):
        checkpoints.write(2, {}, {}, lambda folder: full)
        with pytest.raises(RunError, match=r"checkpoint of step 2 could not be written to .*No space left"):
            call()
    checkpoints.write(2, {}, {}, lambda folder: full)
    checkpoints.abandon()
    assert (checkpoints.steps(), checkpoints.saved_step) == ([1], 1)
    assert {p.name for p in tmp_path.iterdir()} == {"step_000001", "LATEST"}


STEPS = 7


def settings() -> Config:
    return Config(
        run=RunConfig(name="t", steps=STEPS),
        algorithm=AlgorithmConfig(
            k=2,
            group_size=8,
            prompts_per_step=4,
            refill_rounds=1,
            k_schedule="adaptive",
            k_values=[1, 6],
            mix_with="grpo",
            mix_weight=[0.0, 1.0],
        ),
        eval=EvalConfig(prompts=3, samples=16, every=3, k=[1, 4]),
        checkpoint=CheckpointConfig(every=1, keep_last=100),
    )


class Killed(BaseException):
    """The run is gone: nothing after this runs."""


def run(
    folder: Path, *, kill: tuple[str, int] = ("", 0), stop_after: int = 10**9, asynchronous: bool = False
) -> FakeLearner:
    """A run in `folder`, from its newest checkpoint; dies when the named thing happens for the given step."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=100, asynchronous=asynchronous)
    source, _ = checkpoints.newest_good()
    step_of_source = None if source is None else read_manifest(source)["step"]
    if source is None and (folder / "metrics.jsonl").exists():
        (folder / "metrics.jsonl").unlink()
    log = RunLog(folder, tensorboard=False, save_rollouts=0, resumed_step=step_of_source)
    learner = FakeLearner()
    rollouts = FakeRollouts(lambda p: (0.1, 0.4, 0.7)[int(p.prompt_id[1:]) % 3])
    happening, at = kill
    update, write_checkpoint, write_line = learner.update, checkpoints.write, log.log

    def updating(batch: Any) -> Any:
        if happening == "update" and batch.step == at:
            raise Killed
        return update(batch)

    def writing(step: int, *args: Any) -> Any:
        if happening == "before checkpoint" and step == at:
            raise Killed
        done = write_checkpoint(step, *args)
        if happening == "after checkpoint" and step == at:
            raise Killed
        return done

    def logging(step: int, metrics: Any) -> None:
        if happening == "half a line" and step == at:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 3, "rew')
            raise Killed
        write_line(step, metrics)

    learner.update, checkpoints.write, log.log = updating, writing, logging  # type: ignore[method-assign]
    done = 0

    def should_stop() -> bool:
        return done >= stop_after

    class Counting(Observer):
        def step_done(self, step: int, metrics: dict[str, float]) -> None:
            nonlocal done
            done = step

    try:
        stream = PromptStream([prompt(f"p{i}") for i in range(10)], seed=0)
        held_out = [prompt(f"e{i}") for i in range(3)]
        config = settings()
        Trainer(config, stream, held_out, rollouts, learner, log, Counting(), should_stop, checkpoints).run(source)
    except Killed:
        checkpoints.abandon()
    return learner


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in row.items() if not k.startswith(("time", "throughput"))} for row in rows]
    return [row for row in plain if set(row) != {"step"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder).weights, lines(folder)


HAPPENINGS = ("update", "before checkpoint", "after checkpoint", "half a line")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "in the background"])
@pytest.mark.parametrize("at", range(1, STEPS + 1))
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_killed_at_any_step_and_resumed_is_never_killed(
    happening: str, at: int, asynchronous: bool, whole: tuple[int, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run(tmp_path, kill=(happening, at), asynchronous=asynchronous)
    assert run(tmp_path, asynchronous=asynchronous).weights == whole[0]
    assert lines(tmp_path) == whole[1]


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_stopped_after_any_step_and_resumed_is_never_stopped(
    at: int, whole: tuple[int, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run(tmp_path, stop_after=at)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == at
    assert run(tmp_path).weights == whole[0]
    assert lines(tmp_path) == whole[1]


def test_killed_over_and_over(whole: tuple[int, list[dict[str, Any]]], tmp_path: Path) -> None:
    for at in range(1, STEPS + 1):
        for happening in HAPPENINGS:
            run(tmp_path, kill=(happening, at))
        if at % 3 == 0:  # and the newest checkpoint is lost
            shutil.rmtree(tmp_path / "checkpoints" / f"step_{max(Checkpoints(tmp_path / 'checkpoints').steps()):06d}")
    assert run(tmp_path).weights == whole[0]
    assert lines(tmp_path) == whole[1]

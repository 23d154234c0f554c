"""A learner that is lost, with fakes: the loop goes on from the newest checkpoint, and ends as if nothing had been."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launch.run.restarts import with_restarts
from learner.group import LearnerGroup, StepInProgress
from maxpo.checkpoints.local import Checkpoints
from maxpo.data.order import PromptStream
from maxpo.errors import LearnerLostError, RemoteError
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.state import RunResult
from maxpo.loop.train import Trainer
from maxpo.runtime.waits import who_waits
from maxpo.tracking.run_log import RunLog
from maxpo.types import Mix, StepResult
from tests.core.checkpoints.test_checkpoint import STEPS, lines, settings
from tests.fakes import FakeLearner, FakeRollouts, prompt


class Mortal(FakeLearner):
    """Dies at given updates, counted over all its lives, and comes back knowing nothing."""

    def __init__(self, deaths: set[int]) -> None:
        super().__init__()
        self.deaths, self.updates, self.restarts = deaths, 0, 0

    def update(self, batch: Any) -> StepResult:
        self.updates += 1
        if self.updates in self.deaths:
            self.weights = -1
            raise LearnerLostError("learner rank 1 died while step 3: it was killed")
        return super().update(batch)

    def restart(self) -> None:
        self.weights, self.version = 0, -1
        self.restarts += 1


def run(folder: Path, deaths: set[int], *, every: int, asynchronous: bool = False, most: int = 3) -> tuple[Any, ...]:
    config = settings()
    config.checkpoint.every, config.learner.max_restarts = every, most
    learner, rollouts, console = Mortal(deaths), FakeRollouts(lambda p: 0.4), Console(file=StringIO(), width=200)
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=100, asynchronous=asynchronous)

    def attempt(start: Path | None, step: int | None) -> RunResult:
        log = RunLog(folder, tensorboard=False, save_rollouts=0, resumed_step=step)
        stream = PromptStream([prompt(f"p{i}") for i in range(10)], seed=0)
        held_out = [prompt(f"e{i}") for i in range(3)]
        return Trainer(config, stream, held_out, rollouts, learner, log, Observer(), checkpoints=checkpoints).run(start)

    result = with_restarts(attempt, None, checkpoints, learner.restart, config, console)
    return result, learner, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("every", "deaths", "from_the_beginning"),
    [
        *((0, deaths, len(deaths)) for deaths in ({1}, {4}, {STEPS}, {3, 4, 6})),
        *((1, deaths, int(1 in deaths)) for deaths in ({1}, {4}, {STEPS}, {3, 4, 6})),
        *((3, deaths, n) for deaths, n in (({1}, 1), ({4}, 0), ({STEPS}, 0), ({3, 4, 6}, 3))),
    ],
)
def test_it_ends_as_if_the_learner_had_never_died(
    deaths: set[int], every: int, from_the_beginning: int, asynchronous: bool, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    _, undisturbed, _ = run(tmp_path / "a", set(), every=every)
    result, learner, said = run(tmp_path / "b", deaths, every=every, asynchronous=asynchronous)
    assert learner.restarts == len(deaths)
    assert learner.weights == undisturbed.weights
    assert lines(tmp_path / "b") == lines(tmp_path / "a")
    assert result.steps == STEPS
    assert said.count("learner rank 1 died while step 3: it was killed") == len(deaths)
    assert said.count("going on from the beginning") == from_the_beginning


def test_too_many_deaths_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(LearnerLostError, match="learner rank 1 died"):
        run(tmp_path, {3, 4}, every=1, most=1)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1, 2]
    assert not list((tmp_path / "checkpoints").glob(".*partial"))


def test_a_lost_learner_is_no_reason_to_replace_engines() -> None:
    class Lost(FakeLearner):
        def publish(self, receivers: Any, *, again: bool = False) -> Any:
            raise LearnerLostError("learner rank 0 died while sending weights")

    rollouts = FakeRollouts()
    rollouts.replace_lost = lambda: pytest.fail("asked for engines")  # type: ignore[method-assign]
    with pytest.raises(RemoteError, match="rank 0 died"):
        publish(rollouts, Lost(), Observer())


def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    class Stillborn(Mortal):
        def restart(self) -> None:
            super().restart()
            if self.restarts == 1:
                raise LearnerLostError("learner rank 0 failed while starting: out of memory")

    config = settings()
    config.checkpoint.every = 0
    learner, console = Stillborn({2}), Console(file=StringIO(), width=200)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    steps: list[int | None] = []

    def attempt(start: Path | None, step: int | None) -> RunResult:
        steps.append(step)
        learner.update(SimpleNamespace(groups=(), step=1, k=(), mix=Mix()))
        learner.update(SimpleNamespace(groups=(), step=2, k=(), mix=Mix()))
        return RunResult(steps=2)

    assert with_restarts(attempt, None, checkpoints, learner.restart, config, console).steps == 2
    assert steps == [None, -1]
    assert learner.restarts == 2
    assert "failed while starting: out of memory\nstarting the learner again; 1 restarts" in console.file.getvalue()  # type: ignore[attr-defined]


def step_in_progress(
    monkeypatch: pytest.MonkeyPatch, calls: dict[str, Future[Any]], limit_s: float = 600.0
) -> tuple[StepInProgress, list[float], list[str]]:
    """A step whose calls end as these futures do; the timeouts of Ray's waits, and the wake-ups."""
    waited: list[float] = []
    woken: list[str] = []

    def wait(refs: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        waited.append(timeout)
        done = [ref for ref in refs if calls[ref].done()][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    class Ref(str):
        """Name of a rank, in place of Ray's reference."""

        def future(self) -> Future[Any]:
            return calls[self]

    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.get", lambda ref: calls[ref].result())
    group: Any = SimpleNamespace(_dead=dict)
    group.results = partial(LearnerGroup.results, group)
    refs: Any = {name: Ref(name) for name in calls}
    return StepInProgress(group, refs, "step 3", limit_s, lambda: woken.append("now")), waited, woken


def test_a_learner_that_hangs_is_lost_at_its_deadline_and_not_waited_for_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: dict[str, Future[Any]] = {"learner rank 0": Future(), "learner rank 1": Future()}
    clock = [1000.0]
    monkeypatch.setattr("learner.group.time.monotonic", lambda: clock[0])
    update, waited, _ = step_in_progress(monkeypatch, calls, 50.0)
    calls["learner rank 0"].set_result({})
    clock[0] += 49
    assert not update.done()
    clock[0] += 1
    assert update.done()
    clock[0] += 7
    with pytest.raises(LearnerLostError, match=r"^learner rank 1 did not finish step 3 within 50 s"):
        update.result()
    assert set(waited) == {0.0}
    assert not who_waits()


def test_a_step_ends_with_the_first_rank_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks may hang in a collective operation with it."""
    calls: dict[str, Future[Any]] = {"learner rank 0": Future(), "learner rank 1": Future()}
    update, _, woken = step_in_progress(monkeypatch, calls)
    assert not update.done()
    calls["learner rank 1"].set_exception(ValueError("no such token"))
    assert woken == ["now"]
    assert update.done()
    with pytest.raises(RemoteError, match="learner rank 1 failed while step 3: no such token"):
        update.result()


def test_a_step_has_the_metrics_of_rank_0_once_all_ranks_have_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Future[Any]] = {"learner rank 0": Future(), "learner rank 1": Future()}
    update, _, woken = step_in_progress(monkeypatch, calls)
    calls["learner rank 0"].set_result({"loss/policy": 1.0})
    assert not update.done()
    calls["learner rank 1"].set_result({"loss/policy": 2.0})
    assert update.done()
    assert woken == ["now", "now"]
    assert update.result().metrics == {"loss/policy": 1.0}

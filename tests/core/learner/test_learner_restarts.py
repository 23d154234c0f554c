"""A learner that is lost, with fakes: the loop goes on from the newest checkpoint, and ends as if nothing had been."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launch.run.restarts import with_restarts
from maxpo.checkpoints.local import Checkpoints
from maxpo.data.order import PromptStream
from maxpo.errors import LearnerLostError, RemoteError
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.state import RunResult
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import StepResult
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
        learner.update(SimpleNamespace(groups=(), step=1, k=(), mix_weight=0.0))
        learner.update(SimpleNamespace(groups=(), step=2, k=(), mix_weight=0.0))
        return RunResult(steps=2)

    assert with_restarts(attempt, None, checkpoints, learner.restart, config, console).steps == 2
    assert steps == [None, -1]
    assert learner.restarts == 2
    assert "failed while starting: out of memory\nstarting the learner again; 1 restarts" in console.file.getvalue()  # type: ignore[attr-defined]

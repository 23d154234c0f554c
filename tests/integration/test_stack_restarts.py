"""Workers and engines that are killed: what they worked on is sampled elsewhere, and replacements come back.

They belong to the system of `test_stack.py`, which comes first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray

from launch.cluster.system import System
from maxpo.errors import LearnerLostError, RemoteError, RunError
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.types import Group, Prompt
from tests.integration.conftest import Stack

PROMPTS = 60


@pytest.fixture(scope="module")
def running(stack: Stack) -> System:
    prompts[:] = stack.train[:PROMPTS]
    publish(stack.rollouts, stack.learner, Observer())
    return stack.system


class Notes(Observer):
    """What a publish tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


prompts: list[Prompt] = []
"""What is sampled."""


def actor_of(running: System, number: int) -> psutil.Process:
    actor: Any = running.rollouts._fleet.serving[f"rollout worker {number}"]
    return psutil.Process(ray.get(actor.process_id.remote()))


def core_of(running: System, number: int) -> psutil.Process:
    (core,) = [p for p in actor_of(running, number).children(recursive=True) if p.memory_info().rss > 200 << 20]
    return core


def after(seconds: float, *actions: Callable[[], None]) -> None:
    def run() -> None:
        time.sleep(seconds)
        for action in actions:
            action()

    threading.Thread(target=run).start()


def generate(
    running: System, draw: str = "same", at: int = -1, action: Callable[[], None] = lambda: None
) -> list[Group]:
    """Sample all prompts; `action` happens when group number `at` has arrived. Each group is reported once."""
    seen: list[str] = []

    def on_group(group: Group) -> None:
        seen.append(group.prompt.prompt_id)
        if len(seen) == at:
            action()

    groups = running.rollouts.generate(prompts, 16, draw, on_group)
    assert sorted(seen) == sorted(p.prompt_id for p in prompts)
    assert [g.prompt for g in groups] == prompts
    return groups


def ids(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[tuple(c.token_ids.tolist()) for c in g.completions] for g in groups]


def versions(groups: list[Group]) -> set[int]:
    return {v for g in groups for c in g.completions for v in (c.min_weight_version, c.max_weight_version)}


def both_back(running: System) -> None:
    """Wait until the replacements have started, then publish to all. Replacements are compared with the learner."""
    fleet = running.rollouts._fleet
    while len(fleet.started) < 2:
        fleet.poll(1.0)
    version, replaced, notes = running.learner.version, sorted(fleet.ready), Notes()
    assert publish(running.rollouts, running.learner, notes)["weights/version"] == version + 1
    assert len(fleet.serving) == 2
    assert [note.partition(":")[0] for note in notes.told] == ([" and ".join(replaced)] if replaced else [])


@pytest.fixture
def undisturbed(running: System) -> list[Group]:
    groups = generate(running)
    assert versions(groups) == {running.learner.version}
    return groups


@pytest.mark.parametrize("victim", [actor_of, core_of], ids=["actor", "engine"])
def test_killed_while_generating(
    running: System, undisturbed: list[Group], victim: Callable[[System, int], psutil.Process]
) -> None:
    core = core_of(running, 1)
    before = running.rollouts.metrics()
    assert before["rollout/workers_alive"] == 2
    groups = generate(running, at=5, action=victim(running, 1).kill)
    assert ids(groups) == ids(undisturbed)
    assert versions(groups) == {running.learner.version}
    now = running.rollouts.metrics()
    assert now["rollout/restarts"] == before["rollout/restarts"] + 1
    assert now["rollout/groups_resampled"] > before["rollout/groups_resampled"]
    assert now["rollout/workers_alive"] == 1
    core.wait(10)  # the engine's process ends with its actor
    both_back(running)
    assert ids(generate(running)) == ids(undisturbed)
    assert versions(generate(running)) == {running.learner.version}


def test_hung_while_generating(running: System, undisturbed: list[Group]) -> None:
    """Stopped, as a process is whose machine or disk hangs: it is given up, ended and replaced."""
    core = core_of(running, 1)
    restarts = running.rollouts.metrics()["rollout/restarts"]
    assert ids(generate(running, at=5, action=core.suspend)) == ids(undisturbed)
    assert "no sign of life for" in running.rollouts._fleet._losses[-1][1]
    assert running.rollouts.metrics()["rollout/restarts"] == restarts + 1
    core.wait(20)  # no process is left behind, not even one that is stopped
    both_back(running)


def test_killed_while_idle(running: System, undisturbed: list[Group]) -> None:
    actor_of(running, 0).kill()
    assert ids(generate(running)) == ids(undisturbed)
    actor_of(running, 1)  # serves alone
    both_back(running)


def test_all_killed_while_generating_get_the_current_weights_again(running: System, undisturbed: list[Group]) -> None:
    actor, core = actor_of(running, 0), core_of(running, 1)

    def kill() -> None:
        actor.kill()
        core.kill()

    version = running.learner.version
    groups = generate(running, at=3, action=kill)
    assert ids(groups) == ids(undisturbed)
    assert versions(groups) == {version}
    assert running.learner.version == version
    both_back(running)


def test_hung_during_a_publish(running: System, undisturbed: list[Group]) -> None:
    core = core_of(running, 1)
    core.suspend()
    version = running.learner.version
    assert publish(running.rollouts, running.learner, Observer())["weights/version"] == version + 1
    assert "did not finish giving a sign of life" in running.rollouts._fleet._losses[-1][1]
    assert ids(generate(running)) == ids(undisturbed)
    core.wait(20)
    both_back(running)


def test_killed_during_a_publish(running: System, undisturbed: list[Group]) -> None:
    core = core_of(running, 1)
    core.suspend()  # so that it is in the middle of it
    after(4.0, core.kill)
    version = running.learner.version
    assert publish(running.rollouts, running.learner, Observer())["weights/version"] == version + 1
    assert ids(generate(running)) == ids(undisturbed)
    assert versions(generate(running)) == {version + 1}
    both_back(running)


def test_a_learner_rank_that_dies_is_named_and_the_learner_starts_again(running: System, stack: Stack) -> None:
    """In the middle of a sync, so the engines that wait for the rest of it are replaced, too."""
    psutil.Process(running.learner._pids["learner rank 1"]).kill()
    restarts = running.rollouts.metrics()["rollout/restarts"]
    with pytest.raises(LearnerLostError) as lost:
        publish(running.rollouts, running.learner, Observer())
    assert str(lost.value).startswith("learner rank 1 died while sending weights: ")
    assert "learner rank 0" not in str(lost.value)
    running.restart_learner()
    notes = Notes()
    assert publish(running.rollouts, running.learner, notes)["weights/version"] == 0
    assert len(notes.told) == 1, "engines are compared with the new learner"
    assert running.rollouts.metrics()["rollout/restarts"] == restarts + 2
    assert ids(generate(running)) == ids(stack.first_groups)  # the weights of the start again
    assert versions(generate(running)) == {0}
    both_back(running)


def test_an_engine_that_hangs_in_a_sync_is_named_after_the_deadline(running: System) -> None:
    """It leaves the learner waiting: an engine process is stopped, as a lost machine would be."""
    core = core_of(running, 1)
    core.suspend()
    try:
        with pytest.raises(RemoteError, match=r"worker 1 did not finish preparing to receive weights within 15 s"):
            running.learner.publish(running.rollouts.receivers())
    finally:
        core.kill()


def test_too_many_losses_stop_the_run(running: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last: the pool is not used after this."""
    fleet = running.rollouts._fleet
    monkeypatch.setattr(fleet, "_config", replace(fleet._config, max_restarts=len(fleet._losses)))
    process = actor_of(running, 1)
    process.kill()
    with pytest.raises(
        RunError, match=r"(?s)rollout.max_restarts = .*rollout worker 1: .*its output: .*/log/rollout-worker-1\.log"
    ):
        generate(running)

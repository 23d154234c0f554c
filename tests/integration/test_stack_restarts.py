"""Workers and engines that are killed: what they worked on is sampled elsewhere, and replacements come back.

They belong to the system of `test_stack.py`, which comes first.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from launch.cluster.system import System
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import PipelineConfig
from maxpo.data.order import PromptStream
from maxpo.errors import LearnerLostError, RemoteError, RunError
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import Group, Prompt, Ticket
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


def in_engine(running: System, doing: Callable[[Any], Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run a coroutine over vLLM in each worker; return the results."""

    def run(worker: Any) -> Any:  # in a thread beside the one of vLLM's event loop
        llm = worker._engine._llm
        return asyncio.run_coroutine_threadsafe(doing(llm), llm.output_handler.get_loop()).result(30)

    actors: list[Any] = list(running.rollouts._fleet.serving.values())
    return ray.get([actor.__ray_call__.remote(run) for actor in actors], timeout=60)


async def pause(llm: Any) -> None:
    await llm.pause_generation(mode="keep", clear_cache=False)


async def requests(llm: Any) -> int:
    """Return the number of requests that have not ended."""
    return llm.output_processor.get_num_unfinished_requests()


async def resumed(llm: Any) -> bool:
    """Resume, and return True if no request has blocks of the KV cache a moment later."""
    await llm.resume_generation()
    await asyncio.sleep(0.1)
    return await llm.reset_prefix_cache()


def test_engines_stop_working_on_what_is_abandoned(running: System, undisturbed: list[Group]) -> None:
    """Engines are paused meanwhile, so no request ends by itself. After the pause there is nothing to go on with."""
    pool = running.rollouts
    in_engine(running, pause)
    tickets = [Ticket(number=n, prompt=p, k=4, draw="abandoned", step=1) for n, p in enumerate(prompts)]
    for ticket in tickets:
        pool.submit(ticket)
    pool.serve(lambda: all(count > 0 for count in in_engine(running, requests)))
    pool.abandon()
    assert pool.idle()
    for _ in range(200):
        if sum(in_engine(running, requests)) == 0:
            break
        time.sleep(0.05)
    assert in_engine(running, requests) == [0, 0]
    assert in_engine(running, resumed) == [True, True]
    assert ids(generate(running)) == ids(undisturbed)
    assert not any(ticket.scored for ticket in tickets)


class Killing(Observer):
    """Kills something at the begin of the updates of some steps."""

    def __init__(self, kills: dict[int, Callable[[], None]]) -> None:
        self.step, self.kills = 1, kills

    def stage(self, name: str, total: int = 0) -> None:
        if name == "update" and self.step in self.kills:
            self.kills.pop(self.step)()

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        self.step = step + 1


def train(stack: Stack, folder: Path, observer: Observer, until: int, resume_from: Path | None = None) -> list[Any]:
    """Train with groups of at most two steps ago; return (version, tickets) of each step, after checks of the bound."""
    algorithm = replace(stack.config.algorithm, prompts_per_step=8, drop_zero_signal=False)
    config = replace(
        stack.config,
        run=replace(stack.config.run, steps=7),
        algorithm=algorithm,
        eval=replace(stack.config.eval, every=0, at_start=False, at_end=False),
        pipeline=PipelineConfig(max_staleness=2),
    )
    log = RunLog(folder, tensorboard=False, save_rollouts=0, resumed_step=until if resume_from else None)
    stream, store = PromptStream(stack.train, 0), Checkpoints(folder / "checkpoints", keep_last=2)
    trainer = Trainer(config, stream, [], stack.rollouts, stack.learner, log, observer, checkpoints=store)
    trainer.should_stop = lambda: trainer.result.steps >= until
    steps: list[Any] = []
    versions, take = dict[int, int](), trainer.collector.buffer.take

    def remember(step: int, *args: Any) -> list[Ticket]:
        steps.append((int(trainer.version), take(step, *args)))
        return steps[-1][1]

    admit = trainer.collector.buffer.admit

    def admitting(step: int, *args: Any) -> None:
        versions[step] = int(trainer.version)
        admit(step, *args)

    trainer.collector.buffer.take, trainer.collector.buffer.admit = remember, admitting  # type: ignore[method-assign]
    trainer.run(resume_from)
    for version, tickets in steps:
        for ticket in tickets:
            assert ticket.group
            for completion in ticket.group.completions:
                sampled = [span for span, _ in completion.versions]
                assert sampled == sorted(set(sampled))
                assert versions[ticket.step] <= sampled[0]
                assert sampled[-1] <= version <= sampled[0] + 2
    return steps


def test_engine_and_worker_die_while_the_learner_works_and_groups_are_in_flight(
    running: System, stack: Stack, tmp_path: Path
) -> None:
    """Then the run stops and goes on. Every group is trained once, and none is older than the bound."""
    resampled = running.rollouts.metrics()["rollout/groups_resampled"]
    kills = {2: core_of(running, 0).kill, 4: actor_of(running, 1).kill}
    first = train(stack, tmp_path, Killing(kills), 5)
    assert not kills
    assert running.rollouts.metrics()["rollout/groups_resampled"] > resampled
    state = json.loads((tmp_path / "checkpoints" / "step_000005" / "state.json").read_text())
    pending = [group["number"] for group in state["buffer"]]
    assert pending == list(range(40, 56)), "two steps ahead"
    both_back(running)
    second = train(stack, tmp_path, Observer(), 7, tmp_path / "checkpoints" / "step_000005")
    numbers = [ticket.number for _, tickets in [*first, *second] for ticket in tickets]
    assert numbers == list(range(56))
    of = {ticket.number: ticket for _, tickets in [*first, *second] for ticket in tickets}
    assert [of[n].prompt for n in range(56)] == PromptStream(stack.train, 0).next(56)
    assert running.rollouts.idle()
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

"""The replacement of lost workers, with fake actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

import rollout.fleet
from maxpo.config import Config, RolloutConfig, RunConfig
from maxpo.errors import RunError
from rollout.fleet import Fleet, is_loss
from rollout.slots import Slots
from rollout.worker import EngineLostError


class FakeRay:
    """References are lists: empty while nothing is known, else the outcome."""

    def __init__(self) -> None:
        self.killed: list[Any] = []
        self.kill = self.killed.append

    def wait(self, refs: list[Any], *, num_returns: int = 1, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref][:num_returns]
        return done, [ref for ref in refs if not any(ref is d for d in done)]

    def get(self, ref: list[Any]) -> Any:
        if isinstance(ref[0], Exception):
            raise ref[0]
        return ref[0]


class FakeActor:
    def __init__(self, number: int) -> None:
        self.number = number
        self.started: list[Any] = []
        self.start = SimpleNamespace(remote=self._start)
        self.questions: list[list[Any]] = []
        self.sign_of_life = SimpleNamespace(remote=self._ask)

    def _ask(self) -> list[Any]:
        self.questions.append([])
        return self.questions[-1]

    def _start(self, version: int | None) -> list[Any]:
        self.version = version
        return self.started


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setattr(rollout.fleet, "ray", ray)
    monkeypatch.setattr("ray.wait", ray.wait)
    monkeypatch.setattr("ray.get", ray.get)
    return ray


def fleet(version: int | None = None, **settings: Any) -> tuple[Fleet, list[FakeActor]]:
    made: list[FakeActor] = []

    def create(number: int) -> FakeActor:
        made.append(FakeActor(number))
        return made[-1]

    config = Config(
        run=RunConfig(start_timeout_s=settings.pop("start_timeout_s", 600.0)),
        rollout=RolloutConfig(workers=2, max_new_tokens=1, **settings),
    )
    workers = Fleet(create, config, None)
    workers.begin_start(version)
    return workers, made


def test_what_counts_as_a_loss() -> None:
    assert is_loss(RayActorError())
    assert is_loss(OutOfMemoryError("killed because the node ran low on memory"))
    wrapped = RuntimeError("as ray wraps it")
    wrapped.cause = EngineLostError("gone")  # type: ignore[attr-defined]
    assert is_loss(wrapped)
    assert not is_loss(RuntimeError("a bug"))
    assert not is_loss(None)


def test_a_replacement_serves_after_it_was_admitted(fake: FakeRay) -> None:
    workers, made = fleet()
    name = "rollout worker 1"
    workers.lost(name, made[1], RayActorError())
    assert fake.killed == [made[1]]
    assert list(workers.started) == ["rollout worker 0"]
    workers.lost(name, made[1], RayActorError())  # a second call of the same actor failed too
    assert workers.restarts == 1
    replacement = made[2]
    assert replacement.number == 1
    workers.poll()
    assert name not in workers.started
    replacement.started.append(4711)
    workers.poll()
    assert workers.ready == {name: replacement}
    assert name not in workers.serving
    workers.admit()
    assert workers.serving[name] is replacement
    assert not workers.ready


def test_in_an_evaluation_a_replacement_serves_at_once(fake: FakeRay) -> None:
    workers, made = fleet(version=0)
    workers.lost("rollout worker 0", made[0], RayActorError())
    assert made[2].version == 0
    made[2].started.append(1)
    workers.poll()
    assert workers.serving["rollout worker 0"] is made[2]


def test_a_replacement_that_cannot_start_is_replaced_until_that_was_too_often(fake: FakeRay) -> None:
    workers, made = fleet(max_restarts=2)
    workers.lost("rollout worker 0", made[0], RayActorError())
    made[2].started.append(RayActorError())
    workers.poll()
    assert workers.restarts == 2
    made[3].started.append(ValueError("no such model"))
    with pytest.raises(RunError, match=r"(?s)3 rollout workers were lost .*rollout worker 0: no such model"):
        workers.poll()


def test_a_replacement_that_never_starts_is_a_loss(fake: FakeRay) -> None:
    workers, made = fleet(start_timeout_s=-1.0, max_restarts=1)
    workers.lost("rollout worker 0", made[0], RayActorError())
    with pytest.raises(RunError, match=r"(?s)2 rollout workers were lost .*did not start its engine within -1 s"):
        workers.poll()


def test_losses_within_the_window_are_limited(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(rollout.fleet.time, "monotonic", lambda: clock[0])
    workers, made = fleet(max_restarts=2, restart_window_s=100.0)
    for now in (0.0, 60.0, 101.0):  # the first is forgotten when the third comes
        clock[0] = now
        workers.lost("rollout worker 0", made[-1] if now else made[0], RayActorError())
    assert workers.restarts == 3
    clock[0] = 159.0
    with pytest.raises(
        RunError, match=r"(?s)3 rollout workers were lost within 100 s, .*max_restarts = 2:.*worker 0: .*its output: "
    ):
        workers.lost("rollout worker 0", made[-1], RayActorError())


def test_no_restart_at_all(fake: FakeRay) -> None:
    workers, made = fleet(max_restarts=0)
    with pytest.raises(RunError, match=r"rollout worker 1: .*its output: worker-\*-\*\.\*"):
        workers.lost("rollout worker 1", made[1], RayActorError())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rollout.fleet.time, "monotonic", lambda: now[0])
    return now


HEALTH = {"health_timeout_s": 60.0}
"""The grace after a start is 60 s then, and the interval between two questions 10 s."""


def test_workers_are_asked_after_their_grace_and_at_intervals(fake: FakeRay, clock: list[float]) -> None:
    workers, (first, second) = fleet(**HEALTH)
    asked: list[float] = []
    for _ in range(130):
        clock[0] += 1
        before = len(first.questions)
        workers.check_health()
        if len(first.questions) > before:
            asked.append(clock[0] - 1000)
            first.questions[-1].append(None)  # answered before the next look
        if second.questions and not second.questions[-1]:
            second.questions[-1].append(None)
    # The grace begins with the first look; then an interval after each answer is seen.
    assert asked == [61, 72, 83, 94, 105, 116, 127]
    assert workers.restarts == 0


def test_a_worker_without_a_sign_of_life_is_lost(fake: FakeRay, clock: list[float]) -> None:
    workers, made = fleet(**HEALTH)
    lost_at = 0.0
    for _ in range(150):
        clock[0] += 1
        workers.check_health()
        if made[0].questions and not made[0].questions[-1]:
            made[0].questions[-1].append(None)
        if fake.killed and not lost_at:
            lost_at = clock[0] - 1000
    assert fake.killed == [made[1]]
    assert lost_at == 61 + 61
    assert "rollout worker 1: no sign of life for 61 s" in workers._losses[0][1]
    assert len(made[2].questions) == 0  # the replacement is not serving yet


def test_a_driver_that_slept_gives_the_workers_their_time(fake: FakeRay, clock: list[float]) -> None:
    workers, made = fleet(**HEALTH)
    for _ in range(70):
        clock[0] += 1
        workers.check_health()
    assert all(actor.questions for actor in made)
    clock[0] += 10_000
    for _ in range(50):
        workers.check_health()
        clock[0] += 1
    assert fake.killed == []
    for _ in range(20):
        workers.check_health()
        clock[0] += 1
    assert fake.killed == made[:2]


def test_a_worker_whose_engine_is_dead_says_so(fake: FakeRay, clock: list[float]) -> None:
    workers, made = fleet(**HEALTH)
    for _ in range(65):
        clock[0] += 1
        workers.check_health()
        if made[0].questions:
            made[0].questions[-1].append(RayActorError())
    assert fake.killed == [made[0]]


def taken(slots: Slots) -> list[str]:
    """Who gets the groups, until there is no slot left."""
    names: list[str] = []
    while slot := slots.take(1):
        names.append(slot.name)
    return names


def test_the_emptiest_worker_gets_the_next_group(fake: FakeRay) -> None:
    workers, _ = fleet()
    slots = Slots(workers, 1, 1.0)
    held = [slots.take(1) for _ in range(4)]
    assert [slot.name for slot in held if slot] == ["rollout worker 0", "rollout worker 1"] * 2
    assert slots.take(1) is None
    for i in (0, 3, 1):  # worker 0 keeps one group, worker 1 none
        slots.give_back(held[i])  # type: ignore[arg-type]
    assert taken(slots) == ["rollout worker 1", "rollout worker 0", "rollout worker 1"]


def test_places_of_a_lost_worker_are_gone_and_its_replacement_has_its_own(fake: FakeRay) -> None:
    workers, made = fleet(version=0)
    slots = Slots(workers, 1, 1.0)
    first = slots.take(1)
    assert first is not None and first.actor is made[0]
    workers.lost("rollout worker 0", made[0], RayActorError())
    slots.give_back(first)
    assert taken(slots) == ["rollout worker 1"] * 2
    made[2].started.append(1)
    workers.poll()
    slot = slots.take(1)
    assert slot is not None and slot.actor is made[2]
    assert taken(slots) == ["rollout worker 0"]
    # All at once: the replacement is lost too, and its own replacement serves before the next look.
    workers.lost("rollout worker 0", made[2], RayActorError())
    made[3].started.append(1)
    workers.poll()
    assert taken(slots) == ["rollout worker 0"] * 2


def test_waiting_for_an_engine_that_never_starts_ends_and_names_it(fake: FakeRay) -> None:
    workers, made = fleet(start_timeout_s=0.05)
    for i in range(2):
        workers.lost(f"rollout worker {i}", made[i], RayActorError())
    message = r"(?s)rollout worker 0, rollout worker 1 did not start within run.start_timeout_s = 0.05 s; if"
    with pytest.raises(RunError, match=message):
        workers.wait_for_one()


def test_all_are_replaced_those_that_start_too(fake: FakeRay) -> None:
    workers, made = fleet()
    workers.lost("rollout worker 1", made[1], RayActorError())
    workers.replace_all()
    assert [actor.number for actor in fake.killed] == [1, 0, 1] and workers.started == {}
    for actor in made[3:]:
        actor.started.append(1)
    workers.wait_for_all()
    assert [actor for _, actor in sorted(workers.ready.items())] == made[3:]

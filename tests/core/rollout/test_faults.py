"""Losses, errors and late answers while groups are in flight, with fake actors whose calls the test ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from ray.exceptions import RayActorError

from maxpo.config import AlgorithmConfig, Config, RewardConfig, RolloutConfig
from maxpo.errors import LearnerLostError, RemoteError
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, Ticket, WeightManifest
from rollout.pool import RolloutPool
from rollout.scoring.verifier_pool import VerifierError
from tests.fakes import FakeLearner, completion, prompt, scored

N = 4
"""Completions of a group."""


class Call(NamedTuple):
    """A group that a worker was asked for."""

    worker: int
    prompt: Prompt
    future: Future[Group]
    limit_s: float

    @property
    def number(self) -> int:
        """Number of the ticket, from the name of its prompt."""
        return int(self.prompt.prompt_id[1:])

    def end(self) -> None:
        """Return the group."""
        self.future.set_result(Group(prompt=self.prompt, completions=(completion(),) * N))


class Desk:
    """A pool of two workers. Each engine has places for one group, and a worker holds one more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **rollout: Any) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Any] = []
        self.asked: list[str] = []
        self.dying: set[str] = set()
        """Workers that die when they are asked for something."""
        self.can_receive = False
        """Answer of engines after a failed publish."""
        monkeypatch.setattr("ray.kill", lambda actor: None)
        monkeypatch.setattr("ray.cancel", self.cancelled.append)
        monkeypatch.setattr("ray.wait", lambda refs, **_: ([], refs))
        monkeypatch.setattr("rollout.pool._actor_factory", lambda *_: self._actor)
        monkeypatch.setattr("rollout.pool.time.sleep", lambda seconds: None)
        settings = {"workers": 2, "max_new_tokens": 1, "max_concurrent_sequences": N, "overcommit": 1.0} | rollout
        config = Config(
            algorithm=AlgorithmConfig(group_size=N, k=2),
            rollout=RolloutConfig(**settings),
            reward=RewardConfig(verifier="exact"),
        )
        self.pool = RolloutPool(config, "cpu", "gloo", lambda number: {})
        self.fleet = self.pool._fleet
        self.pool._rewards.score = self._score  # type: ignore[method-assign]
        monkeypatch.setattr(self.pool, "_ask", self._ask)

    def _actor(self, worker: int) -> Any:
        def generate(name: str, prompt: Prompt, n: int, seed: int, limit_s: float, *, greedy: bool) -> Any:
            self.calls.append(Call(worker, prompt, Future(), limit_s))
            future = self.calls[-1].future
            return SimpleNamespace(future=lambda: future, prompt=prompt)

        return SimpleNamespace(
            generate=SimpleNamespace(remote=generate),
            start=SimpleNamespace(remote=lambda version: []),
            sign_of_life=SimpleNamespace(remote=lambda: []),
        )

    def _score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        return [scored([1.0] * N, completions=g.completions, prompt=g.prompt) for g in groups]

    def _ask(self, method: str, doing: str, *args: Any, **_: Any) -> dict[str, Any]:
        self.asked.append(method)
        for name in sorted(self.dying & set(self.fleet.started)):
            self.fleet.lost(name, self.fleet.started[name], RayActorError())
        self.dying = set()
        return {name: self.can_receive for name in self.fleet.started} if method == "can_receive" else {}

    def submit(self, *numbers: int) -> list[Ticket]:
        tickets = [Ticket(number=n, prompt=prompt(f"p{n}"), k=2, draw=f"group{n}", step=1) for n in numbers]
        for ticket in tickets:
            self.pool.submit(ticket)
        return tickets

    def until_asked(self, calls: int, **kwargs: Any) -> list[int]:
        """Serve until this many calls were made in all; return the numbers of those that are new."""
        before = len(self.calls)
        self.pool.serve(lambda: len(self.calls) == calls, **kwargs)
        return [call.number for call in self.calls[before:]]

    def lose(self, worker: int) -> list[int]:
        """End the running calls of a worker as its death does, the newest first; return their numbers."""
        lost = [call for call in self.calls if call.worker == worker and not call.future.done()]
        for call in reversed(lost):
            call.future.set_exception(RayActorError())
        return [call.number for call in lost]

    def start_again(self) -> None:
        """Let the replacements of lost workers start."""
        self.fleet.ready |= {name: start.actor for name, start in self.fleet._starting.items()}
        self.fleet._starting.clear()

    def after(self, events: int) -> Callable[[], bool]:
        """Return a condition that holds after this many events, of which it is the source."""
        left = iter(range(events, -1, -1))

        def enough() -> bool:
            self.pool.wake()
            return next(left) == 0

        return enough

    def end_all(self, tickets: Sequence[Ticket]) -> None:
        """End every call as soon as it is made, until all tickets are scored."""

        def done() -> bool:
            for call in self.calls:
                if not call.future.done():
                    call.end()
            return all(ticket.scored for ticket in tickets)

        self.pool.serve(done)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def test_groups_of_a_lost_worker_are_the_next_ones_by_their_numbers(desk: Desk) -> None:
    tickets = desk.submit(*range(8))
    assert desk.until_asked(4) == [0, 1, 2, 3]
    assert desk.lose(0) == [0, 2]
    seen = [0]
    for _ in range(5):
        next(c for c in desk.calls if not c.future.done()).end()
        seen += desk.until_asked(len(desk.calls) + 1)
    assert seen[1:] == [0, 2, 4, 5, 6]
    assert {call.worker for call in desk.calls[4:]} == {1}
    desk.end_all(tickets)
    assert desk.pool._sampling.resampled == 2
    assert sorted(ticket.finished for ticket in tickets) == list(range(8)), "each is scored once"


def test_an_evaluation_goes_first_and_groups_in_flight_go_on(desk: Desk) -> None:
    tickets = desk.submit(*range(6))
    desk.until_asked(4)
    asked: list[str] = []

    def on_group(group: Group) -> None:
        asked[:] = [call.prompt.prompt_id for call in desk.calls]

    serve = desk.pool._sampling.serve

    def ending(until: Callable[[], bool], *, may_send_weights: bool) -> None:
        def done() -> bool:
            """End one call each time: first those in flight, which have the places."""
            for call in desk.calls:
                if not call.future.done():
                    call.end()
                    break
            return until()

        serve(done, may_send_weights=may_send_weights)

    desk.pool._sampling.serve = ending  # type: ignore[method-assign]
    desk.pool.generate([prompt(f"e{i}") for i in range(3)], N, "eval", on_group)
    assert asked == ["p0", "p1", "p2", "p3", "e0", "e1", "e2"], "no training group before the last of the evaluation"
    assert all(ticket.group for ticket in tickets[:4]), "those in flight were sampled meanwhile"
    desk.end_all(tickets)


def test_the_time_limit_of_a_group_covers_those_before_it_at_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, generate_timeout_s=100.0, overcommit=3.0)
    desk.submit(*range(20))
    desk.until_asked(8)
    # Both workers take turns. An engine has places for one group.
    assert [call.limit_s for call in desk.calls] == [100.0, 100.0, 200.0, 200.0, 300.0, 300.0, 400.0, 400.0]


def test_a_group_that_was_on_time_is_not_late_because_nobody_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread may be busy with a checkpoint or a sync when a group arrives."""
    desk = Desk(monkeypatch, generate_timeout_s=0.001, workers=1)
    monkeypatch.setattr("rollout.sampling.GRACE_S", 0.0)
    clock = [1000.0]
    monkeypatch.setattr("rollout.sampling.time.monotonic", lambda: clock[0])
    tickets = desk.submit(0, 1)
    desk.until_asked(2)
    for call in desk.calls:
        call.end()
    clock[0] += 1000
    desk.pool.serve(lambda: all(ticket.group for ticket in tickets))
    desk.submit(2)
    desk.until_asked(3)
    clock[0] += 1000
    with pytest.raises(RemoteError, match="rollout worker 0 did not return a group within"):
        desk.pool.serve(lambda: False)


def test_abandon_cancels_calls_frees_places_and_ignores_what_comes_late(desk: Desk) -> None:
    scoring, go_on = threading.Event(), threading.Event()
    score = desk.pool._rewards.score

    def slow(groups: Sequence[Group]) -> list[ScoredGroup]:
        scoring.set()
        assert go_on.wait(10)
        return score(groups)

    desk.pool._rewards.score = slow  # type: ignore[method-assign]
    old = desk.submit(0, 1, 2, 3, 4, 5)
    desk.until_asked(4)
    desk.calls[0].end()
    desk.until_asked(5)
    assert scoring.wait(10), "group 0 is being scored"
    desk.calls[1].future.set_exception(ValueError("an error that nobody saw"))
    desk.lose(0)
    running = [call for call in desk.calls if not call.future.done()]
    desk.pool.abandon()
    assert desk.pool.idle()
    assert {ref.prompt.prompt_id for ref in desk.cancelled} == {"p1", "p2", "p3", "p4"}
    assert all(call.future.cancelled() for call in running)
    new = desk.submit(0, 1, 2, 3)
    assert desk.until_asked(9) == [0, 1, 2, 3], "places of cancelled calls are free"
    go_on.set()
    desk.end_all(new)
    assert not any(ticket.scored for ticket in old)
    assert [ticket.scored.group.prompt.prompt_id for ticket in new if ticket.scored] == ["p0", "p1", "p2", "p3"]
    assert desk.fleet.restarts == 0
    assert desk.pool.idle()


@pytest.mark.parametrize("error", [VerifierError("broke down 4 times"), MemoryError("no memory"), SystemExit(3)])
def test_an_error_in_the_scoring_thread_is_raised_by_serve(desk: Desk, error: BaseException) -> None:
    def fail(groups: Sequence[Group]) -> list[ScoredGroup]:
        assert threading.current_thread() is not threading.main_thread()
        raise error

    desk.pool._rewards.score = fail  # type: ignore[method-assign]
    desk.submit(0)
    desk.until_asked(1)
    desk.calls[0].end()
    with pytest.raises(type(error)) as raised:
        desk.pool.serve(lambda: False, learner_busy=True)
    assert raised.value is error


class Sender(FakeLearner):
    """A learner that counts how often it sends weights again."""

    republished = 0

    def republish(self, receivers: Sequence[Receiver]) -> WeightManifest:
        """Send the weights again to the replacements of engines that were lost."""
        self.republished += 1
        return self.publish(receivers, again=True)


def all_die(desk: Desk) -> tuple[list[Ticket], Sender]:
    """Lose both workers with four groups in flight. Their replacements start at once."""
    learner = Sender()
    desk.pool.republish = learner.republish
    tickets = desk.submit(*range(6))
    desk.until_asked(4)
    desk.lose(0)
    desk.lose(1)
    desk.fleet.poll = lambda timeout_s=0.0: desk.start_again()  # type: ignore[method-assign]
    return tickets, learner


def test_all_workers_die_while_the_learner_works(desk: Desk) -> None:
    """A republish would send the new weights under the old version. The next publish admits the replacements."""
    tickets, learner = all_die(desk)
    desk.pool.serve(desk.after(12), learner_busy=True)
    assert (len(desk.calls), learner.republished) == (4, 0)
    assert desk.fleet.ready
    assert not desk.fleet.serving
    publish(desk.pool, learner, Observer())
    assert desk.until_asked(8) == [0, 1, 2, 3]
    desk.end_all(tickets)
    assert (learner.republished, desk.pool._sampling.resampled) == (0, 4)


def test_all_workers_die_while_the_loop_waits_for_groups(desk: Desk) -> None:
    tickets, learner = all_die(desk)
    desk.end_all(tickets)
    assert (learner.republished, desk.pool._sampling.resampled) == (1, 4)


def test_all_workers_die_while_an_update_is_drained(desk: Desk) -> None:
    """Nobody can finish the groups before the publish, so the wait ends, without a republish of the new weights."""
    tickets, learner = all_die(desk)
    assert not desk.pool.idle()
    enough = desk.after(12)
    desk.pool.serve(lambda: desk.pool.idle() or enough(), learner_busy=True)
    assert desk.pool.idle()
    assert (len(desk.calls), learner.republished) == (4, 0)
    publish(desk.pool, learner, Observer())
    assert not desk.pool.idle()
    desk.end_all(tickets)
    assert desk.pool.idle()


def test_what_is_being_scored_is_not_idle(desk: Desk) -> None:
    go_on = threading.Event()
    score = desk.pool._rewards.score
    desk.pool._rewards.score = lambda groups: score(groups) if go_on.wait(10) else []  # type: ignore[method-assign]
    (ticket,) = desk.submit(0)
    desk.until_asked(1)
    desk.calls[0].end()
    desk.pool.serve(lambda: ticket.group is not None)
    assert not desk.pool.idle()
    go_on.set()
    desk.pool.serve(desk.pool.idle)
    assert ticket.scored


@pytest.mark.parametrize("can_receive", [False, True])
def test_a_worker_dies_during_a_publish_with_groups_in_flight(desk: Desk, can_receive: bool) -> None:
    """If the other engine stopped in the middle, it is restarted too, which is no loss, and its groups begin again."""

    class Failing(Sender):
        def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
            if not again:
                self.version += 1
                desk.dying = {"rollout worker 0"}
                raise RemoteError("rollout worker 0 died while receiving weights")
            return super().publish(receivers, again=True)

    desk.can_receive = can_receive
    tickets = desk.submit(*range(6))
    desk.until_asked(4)
    desk.fleet.wait_for_one = desk.start_again  # type: ignore[method-assign]
    publish(desk.pool, Failing(), Observer())
    desk.start_again()
    desk.fleet.admit()
    lost = desk.lose(0) + ([] if can_receive else desk.lose(1))  # Ray tells it when their processes are gone
    desk.pool.serve(lambda: desk.pool._sampling.resampled == len(lost))
    assert desk.until_asked(4 + len(lost)) == sorted(lost)
    desk.end_all(tickets)
    assert (len(desk.fleet._losses), desk.fleet.restarts) == (1, 1 if can_receive else 2)


def test_a_worker_dies_in_a_transfer_that_the_learner_cannot_give_up(desk: Desk) -> None:
    desk.pool._backend = "nccl"
    tickets = desk.submit(0, 1)
    desk.until_asked(2)
    desk.dying = {"rollout worker 0"}
    with pytest.raises(LearnerLostError, match="rollout worker 0 was lost in a transfer over nccl"):
        desk.pool.replace_lost()
    desk.pool.abandon()  # the next attempt of the loop begins with this
    assert not any(ticket.group for ticket in tickets)
    assert desk.pool.idle()

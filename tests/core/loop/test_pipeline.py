"""The asynchronous loop over fakes whose groups take random times and whose workers die."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maxpo.batches.samples import treat_truncated
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import AlgorithmConfig, CheckpointConfig, Config, EvalConfig, PipelineConfig, RunConfig
from maxpo.data.order import PromptStream
from maxpo.errors import CheckpointError, LearnerLostError, RemoteError, RunError
from maxpo.estimators.k_schedule import PassRates, adapted_k, mix_weight
from maxpo.loop.buffer import k_of
from maxpo.loop.collect import step_batch
from maxpo.loop.observer import Observer
from maxpo.loop.selection import assess
from maxpo.loop.step_metrics import valid_successes
from maxpo.loop.train import Trainer
from maxpo.seeds import derive_seed
from maxpo.tracking.run_log import RunLog
from maxpo.types import Group, Mix, Prompt, StepBatch, StepResult, Ticket, WeightManifest
from tests.fakes import FakeLearner, FakeRollouts, completion, prompt

PROMPTS = [prompt(f"p{i}") for i in range(300)]
HELD_OUT = [prompt(f"e{i}") for i in range(3)]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "refill": {"refill_rounds": 2},
    "adaptive": {"refill_rounds": 3, "k_schedule": "adaptive", "k_values": [1, 6]},
    "no_filter": {"drop_zero_signal": False},
    "linear": {"k_schedule": "linear", "k_values": [5, 1]},
    "mixed": {"mix_with": "grpo", "mix_weight": [0.0, 1.0]},
}
BOUNDS = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (4, 4), (8, 1), (8, 4)]
"""Pairs of max_staleness and lookahead."""


def skill(of: Prompt) -> float:
    return (0.0, 0.15, 0.5, 1.0)[int(of.prompt_id[1:]) % 4] if of.prompt_id[0] == "p" else 0.5


def config(staleness: int = 0, lookahead: int | None = None, steps: int = 12, **algorithm: Any) -> Config:
    return Config(
        run=RunConfig(name="t", steps=steps),
        algorithm=AlgorithmConfig(**({"k": 2, "group_size": 8, "prompts_per_step": 4} | algorithm)),
        eval=EvalConfig(prompts=3, samples=16, every=5, k=[1, 4]),
        pipeline=PipelineConfig(max_staleness=staleness, lookahead=lookahead),
        checkpoint=CheckpointConfig(every=1, keep_last=100),
    )


class Slow(FakeRollouts):
    """Groups take a random number of ticks with a long tail. A tick may also lose a worker, whose group starts again.

    A completion has tokens of the weights at its start and at its end.
    """

    def __init__(self, seed: int = 0, loss: float = 0.03, places: int = 5) -> None:
        super().__init__(skill)
        self.random, self.loss, self.places = random.Random(seed), loss, places
        self.waiting: list[Ticket] = []
        self.flying: list[tuple[Ticket, float, int]] = []
        """Ticket, tick at which it ends, version at its start."""
        self.now = 0.0
        self.admitted: list[Ticket] = []
        self.count = itertools.count()

    def submit(self, ticket: Ticket) -> None:
        self.waiting.append(ticket)
        self.admitted.append(ticket)

    def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
        for _ in range(100_000):
            if until():
                return
            self.tick()
        raise AssertionError("nothing happens any more")

    def idle(self) -> bool:
        return not self.waiting and not self.flying

    def abandon(self) -> None:
        self.waiting, self.flying = [], []

    def tick(self) -> None:
        assert self.version is not None
        self.now += 1
        self.waiting.sort(key=lambda ticket: ticket.number)
        while self.waiting and len(self.flying) < self.places:
            end = self.now + int(self.random.paretovariate(0.7))
            self.flying.append((self.waiting.pop(0), end, self.version))
        if self.flying and self.random.random() < self.loss:
            self.waiting.append(self.flying.pop(self.random.randrange(len(self.flying)))[0])
        ended = [flight for flight in self.flying if flight[1] <= self.now]
        self.flying = [flight for flight in self.flying if flight not in ended]
        for ticket, _, began in ended:
            rng = random.Random(derive_seed(ticket.draw, ticket.prompt.prompt_id))
            texts = ["yes" if rng.random() < skill(ticket.prompt) else "no" for _ in range(self.group_size)]
            spans = ((began, 0), (self.version, 2)) if self.version > began else ((began, 0),)
            completions = tuple(replace(completion(text), versions=spans) for text in texts)
            ticket.group = Group(prompt=ticket.prompt, completions=completions)
            (ticket.scored,) = self.score([ticket.group])
            ticket.finished = next(self.count)


class SlowLearner(FakeLearner):
    """Its updates take some ticks, and every so many of them it dies."""

    def __init__(self, ticks: int = 3, dies_in: Sequence[int] = ()) -> None:
        super().__init__()
        self.ticks, self.deaths = ticks, set(dies_in)

    def begin_update(self, batch: StepBatch, wake: Callable[[], None]) -> Any:
        return SlowUpdate(self, batch)


class SlowUpdate:
    def __init__(self, learner: SlowLearner, batch: StepBatch) -> None:
        self.learner, self.batch, self.left = learner, batch, learner.ticks

    def done(self) -> bool:
        self.left -= 1
        return self.left < 0

    def result(self) -> StepResult:
        if self.batch.step in self.learner.deaths:
            self.learner.deaths.remove(self.batch.step)
            raise LearnerLostError("it died")
        return self.learner.update(self.batch)


def go(
    folder: Path, settings: Config, rollouts: FakeRollouts, learner: FakeLearner, seed: int = 0, **kwargs: Any
) -> tuple[Trainer, dict[int, list[Ticket]]]:
    """Run, and return the trainer and the tickets taken in each step."""
    folder.mkdir(exist_ok=True)
    log = RunLog(folder, tensorboard=False, save_rollouts=0)
    rollouts.group_size = settings.algorithm.group_size
    resume_from, until = kwargs.pop("resume_from", None), kwargs.pop("until", None)
    if until is not None:
        kwargs["should_stop"] = lambda: trainer.result.steps >= until
    stream = PromptStream(kwargs.pop("prompts", PROMPTS), seed)
    trainer = Trainer(settings, stream, HELD_OUT, rollouts, learner, log, Observer(), **kwargs)
    taken: dict[int, list[Ticket]] = {}
    buffer, take = trainer.collector.buffer, trainer.collector.buffer.take

    def remember(step: int, *args: Any) -> list[Ticket]:
        tickets = take(step, *args)
        taken.setdefault(step, []).extend(tickets)
        return tickets

    buffer.take = remember  # type: ignore[method-assign]
    trainer.run(resume_from)
    return trainer, taken


def synchronous_batches(settings: Config, rollouts: FakeRollouts, seed: int) -> Iterator[StepBatch]:
    """The synchronous loop, written down a second time: sample, score and select, and only then go on."""
    algorithm, steps = settings.algorithm, settings.run.steps
    stream, rates = PromptStream(PROMPTS, seed), PassRates()
    rollouts.version = 0
    for step in range(1, steps + 1):
        mix = Mix(weight=mix_weight(algorithm.mix_weight, step, steps) if algorithm.mix_with else 0.0)
        groups, kept, refills = [], [], -1
        while len(kept) < algorithm.prompts_per_step and refills < algorithm.refill_rounds:
            refills += 1
            prompts = stream.next(algorithm.prompts_per_step - len(kept))
            ks = [k_of(algorithm, rates, p, step, steps) for p in prompts]
            sampled = rollouts.generate(prompts, algorithm.group_size, f"step{step}.{refills}")
            assessed = assess(treat_truncated(rollouts.score(sampled), algorithm.truncated), algorithm, ks, mix)
            groups += assessed
            kept += [g for g in assessed if (g.has_signal if algorithm.drop_zero_signal else g.enough)]
        rates.observe(valid_successes([g.scored for g in groups]))
        if kept:
            yield replace(step_batch(step, groups, kept, mix), version=rollouts.version)
            rollouts.version += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_staleness_0_is_the_synchronous_loop(tmp_path: Path, kind: str, seed: int) -> None:
    settings = config(**KINDS[kind])
    trainer, _ = go(tmp_path, settings, Slow(seed, loss=0.05), learner := SlowLearner(), seed)
    assert learner.batches == list(synchronous_batches(settings, FakeRollouts(skill), seed))
    assert not trainer.collector.buffer.pending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds_and_nothing_is_lost_or_doubled(
    tmp_path: Path, kind: str, bound: tuple[int, int], seed: int
) -> None:
    staleness, lookahead = bound
    rollouts, learner = Slow(seed, places=3 + seed * 4), SlowLearner()
    trainer, taken = go(tmp_path, config(staleness, lookahead, steps=25, **KINDS[kind]), rollouts, learner, seed)
    numbers = [ticket.number for tickets in taken.values() for ticket in tickets]
    assert sorted(numbers) == list(range(trainer.stream.cursor)), "each admitted group is taken exactly once"
    assert not trainer.collector.buffer.pending, "nothing is sampled that no step needs"
    assert len(rollouts.admitted) == trainer.stream.cursor
    assert max(step - ticket.step for step, tickets in taken.items() for ticket in tickets) <= staleness
    if lookahead == staleness:
        assert numbers == sorted(numbers), "in the order of admission"
    lags = [line["staleness/max"] for line in trainer.result.history]
    assert max(lags) <= staleness
    assert max(lags) > 0, "sampling did run ahead"


@pytest.mark.parametrize("bound", [(2, 1), (4, 2)], ids=str)
def test_less_lookahead_means_fresher_groups(tmp_path: Path, bound: tuple[int, int]) -> None:
    means: list[float] = []
    for lookahead in bound:
        trainer, _ = go(tmp_path, config(bound[0], lookahead, steps=40), Slow(places=40), SlowLearner())
        lags = [line["staleness/mean"] for line in trainer.result.history[10:30]]
        means.append(sum(lags) / len(lags))
    assert means[1] < 0.75 * means[0]


@pytest.mark.parametrize("bound", [(1, 1), (4, 2), (4, 4)], ids=str)
def test_adaptive_k_never_sees_the_groups_own_rewards(tmp_path: Path, bound: tuple[int, int]) -> None:
    """The K of each group follows from what was observed before the step of its admission."""
    settings = config(*bound, steps=15, **KINDS["adaptive"])
    few = [prompt(f"p{i}") for i in range(7)]  # so that prompts come again while they are in flight
    rollouts = Slow(1)
    _, taken = go(tmp_path, settings, rollouts, SlowLearner(), prompts=few)
    rates, admitted = PassRates(), {ticket.number: ticket for ticket in rollouts.admitted}
    for step, tickets in taken.items():
        for ticket in [t for t in admitted.values() if t.step == step]:
            assert ticket.k == adapted_k(rates(ticket.prompt.prompt_id), 1, 6)
        rates.observe(valid_successes([ticket.scored for ticket in tickets if ticket.scored]))
    assert len({ticket.k for ticket in rollouts.admitted}) > 2


@pytest.mark.parametrize("kind", ["plain", "refill", "adaptive", "no_filter"])
@pytest.mark.parametrize(
    "bounds", [((0, None),) * 3, ((1, 1),) * 3, ((4, 2),) * 3, ((4, 4), (1, 1), (0, None))], ids=str
)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resume_loses_and_doubles_nothing(
    tmp_path: Path, kind: str, bounds: Sequence[tuple[int, int | None]], stop: int
) -> None:
    """Two stops, maybe with other bounds after each: groups in flight are admitted again with number, draw and K."""
    taken: list[int] = []
    seen: dict[int, tuple[str, int, str]] = {}
    last: Trainer | None = None
    for (staleness, lookahead), until in zip(bounds, (stop, stop + 2, 14), strict=True):
        settings = config(staleness, lookahead, steps=14, **KINDS[kind])
        rollouts, store = Slow(until), Checkpoints(tmp_path / "checkpoints")
        newest, _ = store.newest_good()
        assert (newest is None) == (last is None)
        last, steps = go(
            tmp_path / str(until),
            settings,
            rollouts,
            SlowLearner(),
            until=until,
            checkpoints=store,
            resume_from=newest,
        )
        for ticket in rollouts.admitted:
            now = (ticket.draw, ticket.k, ticket.prompt.prompt_id)
            assert seen.setdefault(ticket.number, now) == now
        taken += [ticket.number for tickets in steps.values() for ticket in tickets]
        assert all(line["staleness/max"] <= staleness for line in last.result.history)
    assert last is not None
    order = PromptStream(PROMPTS, 0).next(len(seen))
    assert sorted(taken) == list(range(last.stream.cursor))
    assert [seen[number][2] for number in sorted(seen)] == [p.prompt_id for p in order]


@pytest.mark.parametrize("buffer", [[{"number": 999, "k": 2, "draw": "x"}], [{"number": 1, "k": 2, "draw": "x"}] * 2])
def test_pending_groups_that_cannot_be_are_refused(tmp_path: Path, buffer: list[Any]) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    go(tmp_path, config(1), Slow(), SlowLearner(), until=2, checkpoints=store)
    newest, _ = store.newest_good()
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"buffer": buffer}))
    with pytest.raises(CheckpointError, match="each must be there once, in order, and below the cursor"):
        go(tmp_path / "again", config(1), Slow(), SlowLearner(), resume_from=newest)


@pytest.mark.parametrize("step", [1, 2, 6, 12])
@pytest.mark.parametrize("bound", [(0, None), (2, 2), (4, 2)], ids=str)
def test_a_lost_learner_costs_no_group(tmp_path: Path, step: int, bound: tuple[int, int | None]) -> None:
    """The next attempt begins with a full buffer at the engines, forgets it, and admits the same groups again."""
    settings, rollouts = config(*bound, drop_zero_signal=False), Slow(step)
    learner = SlowLearner(dies_in=[step])
    store = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(LearnerLostError):
        go(tmp_path / "1", settings, rollouts, learner, checkpoints=store)
    newest, _ = store.newest_good()
    before = {t.number: (t.draw, t.prompt.prompt_id) for t in rollouts.admitted}
    rollouts.admitted = []
    trainer, taken = go(tmp_path / "2", settings, rollouts, learner, checkpoints=store, resume_from=newest)
    numbers = sorted(ticket.number for tickets in taken.values() for ticket in tickets)
    assert trainer.result.steps == 12
    assert not trainer.collector.buffer.pending
    assert len(numbers) == len(set(numbers)) == 4 * (12 - step + 1)
    for ticket in rollouts.admitted:
        assert before.get(ticket.number, (ticket.draw, ticket.prompt.prompt_id)) == (
            ticket.draw,
            ticket.prompt.prompt_id,
        )


def test_a_drained_update_leaves_nothing_in_flight(tmp_path: Path) -> None:
    settings = config(1, drop_zero_signal=False)
    settings.pipeline.update = "drained"
    rollouts = Slow(3, places=40)
    trainer, _ = go(tmp_path, settings, rollouts, SlowLearner())
    spans = {len(c.versions) for t in rollouts.admitted if t.group for c in t.group.completions}
    assert spans == {1}
    assert {line["staleness/mean"] for line in trainer.result.history[1:]} == {1.0}


def test_an_error_of_every_answer_ends_the_run(tmp_path: Path) -> None:
    class Failing(Slow):
        def score(self, groups: Sequence[Group]) -> Any:
            return [
                replace(g, valid=(False,) * 8, successes=(False,) * 8, outcomes=("error: prompt p: Oh",) * 8)
                for g in super().score(groups)
            ]

    settings = config(2)
    settings.eval.at_start = settings.eval.at_end = False
    with pytest.raises(RunError, match=r"reward\.verifier failed on every answer; first error: prompt p: Oh"):
        go(tmp_path, settings, Failing(), SlowLearner())


class Recorded(Slow):
    """Keeps the order of what the loop asks for. A tick is one moment of sampling."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.said: list[str] = []

    def tick(self) -> None:
        self.said.append("tick")
        super().tick()

    def confirm(self, manifest: WeightManifest) -> str | None:
        self.said.append("publish")
        return super().confirm(manifest)


@pytest.mark.parametrize("bound", [(2, 2), (4, 2)], ids=str)
def test_a_stop_during_an_update_ends_with_that_step_and_keeps_what_is_in_flight(
    tmp_path: Path, bound: tuple[int, int]
) -> None:
    """As Ctrl-C does: the step ends, its weights go out, and nothing is waited for after that."""
    settings, rollouts, learner = config(*bound, drop_zero_signal=False), Recorded(seed=1), SlowLearner()
    settings.checkpoint.every = 100
    begin, asked = learner.begin_update, list[bool]()

    def begin_update(batch: StepBatch, wake: Callable[[], None]) -> Any:
        asked.extend([True] * (batch.step == 3))
        return begin(batch, wake)

    learner.begin_update = begin_update  # type: ignore[method-assign]
    store = Checkpoints(tmp_path / "checkpoints")
    trainer, _ = go(tmp_path, settings, rollouts, learner, checkpoints=store, should_stop=lambda: bool(asked))
    assert (trainer.result.steps, trainer.result.stopped) == (3, True)
    assert rollouts.said[-1] == "publish", "nothing is sampled after the last publish"
    assert not rollouts.idle()
    newest, _ = store.newest_good()
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    pending = [group["number"] for group in state["buffer"]]
    assert pending == [ticket.number for ticket in trainer.collector.buffer.pending]
    assert len(pending) == 4 * bound[1]
    assert state["stream"]["cursor"] == 3 * 4 + len(pending)


def test_an_update_that_fails_beside_sampling_keeps_its_groups(tmp_path: Path) -> None:
    class Failing(SlowLearner):
        def update(self, batch: StepBatch) -> StepResult:
            if batch.step == 3:
                raise RemoteError("learner rank 0 failed while step 3: no such token")
            return super().update(batch)

    rollouts = Recorded(places=1)
    with pytest.raises(RunError, match=r"(?s)no such token.*The groups of step 3 are in .*failed_step_000003.jsonl"):
        go(tmp_path, config(2, drop_zero_signal=False), rollouts, Failing())
    assert len((tmp_path / "rollouts" / "failed_step_000003.jsonl").read_text().splitlines()) == 4 * 8
    assert not rollouts.idle()
    assert rollouts.said.count("publish") == 1 + 2


def test_samples_of_a_step_have_the_numbers_of_their_groups(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=3)
    rollouts = Slow(1)
    stream = PromptStream(PROMPTS, 0)
    settings = config(4, 2, steps=6, drop_zero_signal=False)
    Trainer(settings, stream, HELD_OUT, rollouts, SlowLearner(), log, Observer()).run()
    for step in range(1, 7):
        lines = (tmp_path / "rollouts" / f"step_{step:06}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [stream.at(row["group"]).prompt_id for row in rows] == [row["prompt_id"] for row in rows]
        assert len({row["group"] for row in rows}) == 3
    evaluation = (tmp_path / "rollouts" / "eval_000005.jsonl").read_text().splitlines()
    assert "group" not in json.loads(evaluation[0])


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_update_is_drained_while_the_learner_cannot_send_weights(tmp_path: Path, staleness: int) -> None:
    """Weights that would go to a new engine before the publish would have the version of the old ones."""

    class Asked(Slow):
        def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
            asked.append((until == self.idle, learner_busy))
            super().serve(until, learner_busy=learner_busy)

    asked: list[tuple[bool, bool]] = []
    settings = config(staleness, steps=3)
    settings.pipeline.update = "drained"
    go(tmp_path, settings, Asked(), SlowLearner())
    assert asked.count((True, True)) == 3
    assert (True, False) not in asked

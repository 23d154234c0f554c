"""Discrete-event simulation of training steps: engines, groups, the learner, and the bound on staleness.

An engine with b running sequences decodes one token of each in token_s + b * sequence_s seconds. All sequences of an
engine advance at the same rate, so their ends are kept in tokens that the engine has served to each slot: a change of
the rate moves no end, and an event costs O(log n).

Left out: prefill of prompts, memory of the KV cache, engines of different speed, and lengths that depend on the prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

Draw = Callable[[int], NDArray[np.int64]]
"""Number of groups -> lengths of their completions, tokens [groups, samples]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run: its engines, its groups, its times, and how its steps overlap."""

    workers: int
    slots: int
    """Largest number of sequences that an engine decodes at once."""
    prompts: int
    """Groups per step."""
    samples: int
    """Completions per group."""
    token_s: float
    """Seconds of a decoding step of an engine, without its sequences."""
    sequence_s: float = 0.0
    """Seconds that each running sequence adds to a decoding step."""
    update_s: float = 0.0
    sync_s: float = 0.0
    score_s: float = 0.0
    """Seconds from the end of a group to its score."""
    staleness: int = 0
    """Largest number of steps between admission and training of a group."""
    lookahead: int = 0
    """Steps of prompts in flight beyond the current one. Equal to `staleness`: batches in the order of admission."""
    bounded: bool = True
    """False: the first finished groups make a batch, however old others become."""
    drained: bool = False
    """True: weights are sent when nothing is in flight."""
    colocated: bool = False
    """True: engines pause while the learner trains."""
    overcommit: float = 1.0
    """Groups that a worker holds, as a multiple of what fills its engine."""
    prefill_tokens_per_s: float | None = None
    """Speed at which an engine computes the KV cache of running completions again after a sync. None: it is kept."""

    @property
    def held(self) -> int:
        """Largest number of groups that a worker holds."""
        return -int(-self.overcommit * self.slots // self.samples) + 1

    def full_s(self, mean_length: float) -> float:
        """Return the seconds of sampling of a step while every slot is filled."""
        tokens = self.prompts * self.samples * mean_length / self.workers
        return tokens * (self.token_s / self.slots + self.sequence_s)


@dataclass(slots=True, eq=False)
class Group:
    """A group of completions on its way."""

    number: int
    """Order of admission."""
    admitted: int
    """Step of admission."""
    lengths: list[int]
    left: int
    """Completions that have not ended."""
    version: int = -1
    """Version of the weights when its first completion began. -1: none has begun."""


class Engine:
    """An engine with running and waiting completions."""

    __slots__ = ("at", "held", "index", "running", "served", "slot_s", "stamp", "waiting")

    def __init__(self, index: int) -> None:
        self.index = index
        self.at = 0.0
        """Time up to which `served` and `slot_s` count."""
        self.served = 0.0
        """Tokens that the engine has decoded for each slot since its start."""
        self.slot_s = 0.0
        """Sum over time of the number of filled slots."""
        self.running: list[tuple[float, int, int, Group]] = []
        """Heap of (value of `served` at the end, unique number, length, group)."""
        self.waiting: deque[tuple[int, int, Group]] = deque()
        """(unique number, length, group) in the order of arrival."""
        self.held = 0
        """Groups that have not ended."""
        self.stamp = -1
        """Number of its valid event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that has ended."""

    number: int
    ended_s: float
    """Time at its end since the start of the run."""
    groups: list[Group]
    """The groups that were trained, in the order of admission."""
    slot_s: float
    """Sum over time and engines of the number of filled slots since the start of the run."""


class Simulation:
    """A simulated run. Each call of `step` goes on to the end of the next step."""

    def __init__(self, scenario: Scenario, draw: Draw) -> None:
        """Begin with idle engines.

        Args:
            scenario: The run.
            draw: Lengths of the completions of new groups.
        """
        self._scenario, self._draw = scenario, draw
        self._now, self._step, self._admitted = 0.0, 0, 0
        self._numbers = count()
        self._engines = [Engine(index) for index in range(scenario.workers)]
        self._free = [(0, index) for index in range(scenario.workers)]
        """Heap of (groups held, engine). Entries of another number of groups than the engine holds are outdated."""
        self._events: list[tuple[float, int, Engine]] = []
        """Heap of (end of an engine's next completion, stamp, engine). Entries of other stamps are outdated."""
        self._scoring: deque[tuple[float, Group]] = deque()
        """(time of the score, group that has ended), in the order of time."""
        self._queue: deque[Group] = deque()
        """Groups that no engine holds yet."""
        self._pending: dict[int, Group] = {}
        """Groups that are not trained, by number, in the order of admission."""
        self._ready: dict[int, Group] = {}
        """Pending groups that are scored, in the order of their ends."""

    def step(self) -> Step:
        """Admit, wait for a batch, train it, and send the weights."""
        run = self._scenario
        self._step += 1
        self._admit((run.lookahead + 1) * run.prompts - len(self._pending))
        batch = self._take()
        if run.colocated:
            self._pause(run.update_s + run.sync_s)
        else:
            self._until(lambda: False, self._now + run.update_s)
            if run.drained:
                self._until(lambda: len(self._ready) == len(self._pending))
            self._pause(run.sync_s)
        for group in batch:
            # The weights of step s have version s, and step s trains those of version s - 1.
            assert not run.bounded or self._step - group.admitted <= run.staleness
            assert not run.bounded or self._step - 1 - group.version <= run.staleness
        slot_s = sum(engine.slot_s for engine in self._engines)
        return Step(number=self._step, ended_s=self._now, groups=batch, slot_s=slot_s)

    def _admit(self, groups: int) -> None:
        for lengths in self._draw(groups).tolist():
            group = Group(self._admitted, self._step, lengths, len(lengths))
            self._pending[self._admitted] = group
            self._queue.append(group)
            self._admitted += 1
        self._dispatch()

    def _take(self) -> list[Group]:
        """Wait for the oldest groups that must be in this batch and for enough groups in all, and return the batch."""
        prompts = self._scenario.prompts
        oldest = list(islice(self._pending, self._due()))
        missing = [number for number in oldest if number not in self._ready]

        def enough() -> bool:
            while missing and missing[-1] in self._ready:
                missing.pop()
            return not missing and len(self._ready) >= prompts

        self._until(enough)
        due = set(oldest)
        others = (number for number in self._ready if number not in due)
        chosen = sorted([*oldest, *islice(others, prompts - len(oldest))])
        for number in chosen:
            del self._ready[number]
        return [self._pending.pop(number) for number in chosen]

    def _due(self) -> int:
        """Return the number of oldest groups that this step trains, so that all others keep the bound later."""
        run = self._scenario
        if not run.bounded:
            return 0
        if run.lookahead == run.staleness:
            return run.prompts
        ages = [0] * (run.staleness + 1)
        """Groups by the number of steps that they may still wait."""
        for group in self._pending.values():
            ages[group.admitted + run.staleness - self._step] += 1
        due, must = 0, 0
        for later, groups in enumerate(ages):
            due += groups
            must = max(must, due - later * run.prompts)
        assert must <= run.prompts
        return must

    def _dispatch(self) -> None:
        """Give waiting groups to the engines with the fewest groups, up to the limit of each."""
        touched: dict[int, Engine] = {}
        while self._queue and self._free:
            held, index = heappop(self._free)
            engine = self._engines[index]
            if held != engine.held:
                continue
            if held >= self._scenario.held:
                heappush(self._free, (held, index))
                break
            group = self._queue.popleft()
            engine.waiting.extend((next(self._numbers), length, group) for length in group.lengths)
            engine.held += 1
            heappush(self._free, (engine.held, index))
            touched[index] = engine
        for engine in touched.values():
            if len(engine.running) < self._scenario.slots:
                self._advance(engine)
                self._fill(engine)
                self._schedule(engine)

    def _pause(self, seconds: float) -> None:
        """Let the time pass without decoding. Then compute the KV cache of running completions again, if it is lost."""
        speed = self._scenario.prefill_tokens_per_s
        self._events.clear()
        for engine in self._engines:
            self._advance(engine)
            engine.at += seconds
            if speed is not None:
                engine.at += sum(engine.served - end + length for end, _, length, _ in engine.running) / speed
        self._now += seconds
        for engine in self._engines:
            self._schedule(engine)

    def _advance(self, engine: Engine) -> None:
        """Decode up to now."""
        passed = self._now - engine.at
        if passed > 0:  # an engine that computes its KV cache again is ahead of the time
            if running := len(engine.running):
                engine.served += passed / (self._scenario.token_s + running * self._scenario.sequence_s)
            engine.slot_s += passed * running
            engine.at = self._now

    def _fill(self, engine: Engine) -> None:
        """Begin waiting completions in free slots."""
        for _ in range(min(len(engine.waiting), self._scenario.slots - len(engine.running))):
            number, length, group = engine.waiting.popleft()
            if group.version < 0:
                group.version = self._step - 1
            heappush(engine.running, (engine.served + length, number, length, group))

    def _schedule(self, engine: Engine) -> None:
        """Make the end of the engine's next completion its valid event."""
        engine.stamp = next(self._numbers)
        if engine.running:
            token_s = self._scenario.token_s + len(engine.running) * self._scenario.sequence_s
            ends = engine.at + (engine.running[0][0] - engine.served) * token_s
            heappush(self._events, (ends, engine.stamp, engine))

    def _until(self, done: Callable[[], bool], limit: float = float("inf")) -> None:
        """Let engines and verifiers work until a condition holds or the limit of time is reached."""
        events, scoring = self._events, self._scoring
        while not done():
            next_s = scoring[0][0] if scoring else limit
            while events and events[0][0] <= min(next_s, limit):
                ends_s, stamp, engine = heappop(events)
                if stamp == engine.stamp:
                    self._now = ends_s
                    if self._end_of_completions(engine):
                        next_s = scoring[0][0]
                        self._dispatch()
            if next_s >= limit:
                assert limit < float("inf"), "nothing is running, and a batch is not complete"
                self._now = limit
                return
            scored_s, group = scoring.popleft()
            self._now = max(self._now, scored_s)
            self._ready[group.number] = group

    def _end_of_completions(self, engine: Engine) -> bool:
        """End the engine's next completions, begin waiting ones, and return True if a group has ended."""
        ends = engine.running[0][0]
        engine.slot_s += (self._now - engine.at) * len(engine.running)
        engine.at, engine.served = self._now, ends
        ended = False
        while engine.running and engine.running[0][0] == ends:
            group = heappop(engine.running)[3]
            group.left -= 1
            if not group.left:
                self._scoring.append((self._now + self._scenario.score_s, group))
                engine.held -= 1
                heappush(self._free, (engine.held, engine.index))
                ended = True
        self._fill(engine)
        self._schedule(engine)
        return ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Means over the measured steps of a simulated run."""

    step_s: float
    slots_filled: float
    """Share of the slots of all engines."""
    learner_idle: float
    """Share of the time."""
    staleness_mean: float
    """Versions of the weights between the first token of a group and its training, mean over groups."""
    staleness_max: int


def simulate(scenario: Scenario, draw: Draw, steps: int) -> Outcome:
    """Simulate a run until it is in its steady state, and measure steps after that.

    Args:
        scenario: The run.
        draw: Lengths of the completions of new groups.
        steps: Least number of measured steps. Waits for the oldest groups recur every staleness + 1 steps, so the
            number is rounded up to a multiple of this period.
    """
    simulation = Simulation(scenario, draw)
    steps += -steps % (scenario.staleness + 1)
    # Groups of the first admission, which is (lookahead + 1) times as large, are gone after so many steps.
    start = [simulation.step() for _ in range(2 * scenario.lookahead + 2)][-1]
    measured = [simulation.step() for _ in range(steps)]
    time_s = measured[-1].ended_s - start.ended_s
    staleness = [step.number - 1 - group.version for step in measured for group in step.groups]
    return Outcome(
        step_s=time_s / steps,
        slots_filled=(measured[-1].slot_s - start.slot_s) / (scenario.workers * scenario.slots * time_s),
        learner_idle=1 - steps * scenario.update_s / time_s,
        staleness_mean=sum(staleness) / len(staleness),
        staleness_max=max(staleness),
    )


def lognormal(mean: float, sigma: float, longest: int, samples: int, seed: int) -> Draw:
    """Return a source of groups with lognormal lengths.

    Args:
        mean: Mean of the distribution before the cut, tokens.
        sigma: Standard deviation of the logarithm.
        longest: Length at which completions are cut, tokens.
        samples: Completions per group.
        seed: Seed. Equal seeds give equal groups in the order of admission.
    """
    random = np.random.default_rng(seed)

    def draw(groups: int) -> NDArray[np.int64]:
        lengths = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, (groups, samples))
        return np.clip(lengths, 1, longest).astype(np.int64)

    return draw


def resampled(lengths: NDArray[np.int64], samples: int, seed: int) -> Draw:
    """Return a source of groups whose lengths are drawn from given ones, with replacement."""
    random = np.random.default_rng(seed)
    return lambda groups: random.choice(lengths, (groups, samples))

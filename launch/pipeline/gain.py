"""The part of `maxpo plan` about the asynchronous pipeline: the gain of each bound on staleness, and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from launch.pipeline.law import Law, expected_longest
from launch.pipeline.measured import Measured, scenario_of
from launch.pipeline.simulation import Outcome, Scenario, resampled, simulate
from launch.terminal.printing import say
from maxpo.config import Config

STALENESS = (0, 1, 2, 4, 8)
"""Bounds in the table, with the lookahead of `advised_lookahead`."""
BYTES_PER_TOKEN = 13
"""Token, log-probability and text of a completion on its way to the learner."""
STEPS = 6
"""Simulated steps behind each figure, after the start."""
OVERCOMMIT = 4.0
"""Value of `rollout.overcommit` that is enough if lengths vary."""
WORTH = 0.95
"""Share of a step's time below which a change is worth a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Settings that decide how steps overlap."""

    staleness: int = 0
    lookahead: int = 0
    overcommit: float = 1.0


def advised_lookahead(staleness: int) -> int:
    """Return half the bound: about the same speed as the whole bound, at half the mean staleness."""
    return (staleness + 1) // 2


def in_flight(config: Config, lookahead: int) -> int:
    """Return the number of completions between admission and training."""
    return (lookahead + 1) * config.algorithm.prompts_per_step * config.algorithm.group_size


def store_mib(config: Config, lookahead: int, mean_length: float) -> float:
    """Return the MiB of the object store that completions need: those in flight, and the batch of the learner."""
    return in_flight(config, lookahead + 1) * mean_length * BYTES_PER_TOKEN / 2**20


def show_gain(config: Config, measured: Measured, pipeline: Pipeline, console: Console) -> None:
    """Print the time of a step, the staleness and the memory for several bounds, and the bound that is worth it."""
    base = scenario_of(
        config,
        token_s=measured.token_s,
        update_s=measured.update_s,
        sync_s=measured.sync_s,
        score_s=measured.score_s,
        overcommit=pipeline.overcommit,
    )
    law = law_of(base, measured)
    mean = law.mean_length
    say(
        console,
        f"\n{measured.source}: {measured.lengths.size:,} completions of {mean:,.0f} tokens on average, the longest of "
        f"a step about {law.longest:,.0f}\n{1000 * measured.token_s:.3g} ms per token, update {measured.update_s:.3g} "
        f"s, engines with filled slots {law.full_s:.3g} s, sync {measured.sync_s:.3g} s, scoring "
        f"{measured.score_s:.3g} s",
    )
    rows = {staleness: advised_lookahead(staleness) for staleness in STALENESS}
    rows |= {pipeline.staleness: pipeline.lookahead} if pipeline.staleness else {}
    outcomes = {staleness: _simulated(base, staleness, rows[staleness], measured) for staleness in sorted(rows)}
    table = Table("S", "A", "step s", "gain", "slots filled", "learner idle", "staleness", "in flight", "store MiB")
    for staleness, outcome in outcomes.items():
        table.add_row(
            str(staleness),
            str(rows[staleness]),
            f"{outcome.step_s:.3g}",
            f"{outcomes[0].step_s / outcome.step_s:.2f}",
            f"{outcome.slots_filled:.0%}",
            f"{outcome.learner_idle:.0%}",
            f"{outcome.staleness_mean:.1f}",
            f"{in_flight(config, rows[staleness]):,}",
            f"{store_mib(config, rows[staleness], mean):,.0f}",
        )
    console.print(table)
    say(console, "S: pipeline.max_staleness, A: pipeline.lookahead, staleness: mean, in steps; simulated")
    for line in _advice(config, base, law, measured, outcomes):
        say(console, line)


def law_of(scenario: Scenario, measured: Measured) -> Law:
    """Return the law for a scenario and measured lengths."""
    completions = scenario.prompts * scenario.samples
    return Law(
        scenario=scenario,
        mean_length=float(np.mean(measured.lengths)),
        longest=expected_longest(measured.lengths, completions),
    )


def _simulated(base: Scenario, staleness: int, lookahead: int, measured: Measured) -> Outcome:
    draw = resampled(measured.lengths, base.samples, seed=1)
    return simulate(replace(base, staleness=staleness, lookahead=lookahead), draw, STEPS)


def _advice(
    config: Config, base: Scenario, law: Law, measured: Measured, outcomes: dict[int, Outcome]
) -> Iterator[str]:
    """Yield what follows from the table, a line each."""
    fastest = min(outcome.step_s for outcome in outcomes.values())
    best = min(staleness for staleness, outcome in outcomes.items() if WORTH * outcome.step_s <= fastest)
    yield (
        f"S = {best} is within {1 - WORTH:.0%} of the fastest row. By the law nothing is gained beyond S = "
        f"{law.useful_staleness()}. Staleness costs pass@K at a high learning rate"
    )
    if base.overcommit < OVERCOMMIT:
        lookahead = advised_lookahead(best)
        more = _simulated(replace(base, overcommit=OVERCOMMIT), best, lookahead, measured)
        if more.step_s < WORTH * outcomes[best].step_s:
            yield f"rollout.overcommit={OVERCOMMIT:g}: {more.step_s:.3g} s for S = {best}, A = {lookahead}"
    slots = base.workers * base.slots
    yield (
        f"rollout.workers x rollout.max_concurrent_sequences = {slots:,} slots; fewer completions in flight leave "
        "some of them empty"
    )
    if config.ray.address in (None, "local"):
        yield f"ray.object_store_mib = {config.ray.object_store_mib:,}; beyond it Ray writes to disk"

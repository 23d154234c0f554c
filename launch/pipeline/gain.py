"""The part of `maxpo plan` about the asynchronous pipeline: the gain of each bound on staleness, and its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from launch.pipeline.law import SAME, Law
from launch.pipeline.measured import Measured, scenario_of
from launch.pipeline.simulation import Outcome, Scenario, resampled, simulate
from launch.terminal.printing import say
from maxpo.config import Config

STALENESS = (0, 1, 2, 4, 8)
"""Bounds in the table, each with the smallest lookahead that is as fast as the bound allows."""
BYTES_PER_TOKEN = 13
"""Token, log-probability and text of a completion on its way to the learner."""
STEPS = 6
"""Simulated steps behind each figure, after the start."""
OVERCOMMIT = 4.0
"""Value of `rollout.overcommit` that is enough if lengths vary."""


def in_flight(config: Config, lookahead: int) -> int:
    """Return the number of completions between admission and training."""
    return (lookahead + 1) * config.algorithm.prompts_per_step * config.algorithm.group_size


def store_mib(config: Config, lookahead: int, mean_length: float) -> float:
    """Return the MiB of the object store that completions need: those in flight, and the batch of the learner."""
    return in_flight(config, lookahead + 1) * mean_length * BYTES_PER_TOKEN / 2**20


def show_gain(config: Config, measured: Measured, console: Console) -> None:
    """Print the time of a step, the staleness and the memory for several bounds, and the bound that is worth it."""
    base = scenario_of(
        config,
        token_s=measured.token_s,
        update_s=measured.update_s,
        sync_s=measured.sync_s,
        score_s=measured.score_s,
        overcommit=config.rollout.overcommit,
    )
    law = Law(base, measured.lengths)
    mean = law.mean_length
    say(
        console,
        f"\n{measured.source}: {measured.lengths.size:,} completions of {mean:,.0f} tokens on average, the longest of "
        f"a step about {law.longest:,.0f}\n{1000 * measured.token_s:.3g} ms per token, update {measured.update_s:.3g} "
        f"s, engines with filled slots {law.full_s:.3g} s, sync {measured.sync_s:.3g} s, scoring "
        f"{measured.score_s:.3g} s",
    )
    rows = {staleness: law.lookahead(staleness) for staleness in STALENESS}
    pipeline = config.pipeline
    rows |= {pipeline.max_staleness: pipeline.ahead} if pipeline.max_staleness else {}
    outcomes = {staleness: _simulated(base, staleness, rows[staleness], measured) for staleness in sorted(rows)}
    table = Table("S", "A", "step s", "gain", "slots filled", "learner idle", "lag", "in flight", "store MiB")
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
    say(
        console,
        "S: pipeline.max_staleness. A: pipeline.lookahead, the smallest with this speed. lag: mean staleness in "
        "steps. Simulated, for learner and engines on hardware of their own",
    )
    for line in _advice(config, base, law, measured, rows, outcomes):
        say(console, line)


def _simulated(base: Scenario, staleness: int, lookahead: int, measured: Measured) -> Outcome:
    draw = resampled(measured.lengths, base.samples, seed=1)
    return simulate(replace(base, staleness=staleness, lookahead=lookahead), draw, STEPS)


def _advice(
    config: Config,
    base: Scenario,
    law: Law,
    measured: Measured,
    rows: Mapping[int, int],
    outcomes: Mapping[int, Outcome],
) -> Iterator[str]:
    """Yield what follows from the table, a line each."""
    fastest = min(outcome.step_s for outcome in outcomes.values())
    best = min(staleness for staleness, outcome in outcomes.items() if outcome.step_s <= SAME * fastest)
    yield (
        f"S = {best} is as fast as any row, within {SAME - 1:.0%}. By the law nothing is gained beyond S = "
        f"{law.useful_staleness()}. Staleness costs pass@K at a high learning rate"
    )
    if base.overcommit < OVERCOMMIT:
        more = _simulated(replace(base, overcommit=OVERCOMMIT), best, rows[best], measured)
        if SAME * more.step_s < outcomes[best].step_s:
            yield f"rollout.overcommit={OVERCOMMIT:g}: {more.step_s:.3g} s for S = {best}, A = {rows[best]}"
    slots = base.workers * base.slots
    if empty := [staleness for staleness, ahead in rows.items() if in_flight(config, ahead) < slots]:
        yield (
            f"{_listed(empty)}: fewer completions in flight than the {slots:,} slots of rollout.workers x "
            "rollout.max_concurrent_sequences, so some are always empty"
        )
    limit, mean = config.ray.object_store_mib, law.mean_length
    beyond = [staleness for staleness, ahead in rows.items() if store_mib(config, ahead, mean) > limit]
    if beyond and config.ray.address in (None, "local"):
        yield f"{_listed(beyond)}: more than ray.object_store_mib = {limit:,}, so Ray writes completions to disk"


def _listed(staleness: list[int]) -> str:
    return "S = " + ", ".join(map(str, sorted(staleness)))

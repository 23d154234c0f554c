"""Simulated time of a training step: synchronous, colocated, one step off, and asynchronous with a bound on staleness.

    python benchmarks/pipeline_simulation.py            # 8 to 1,024 engines
    python benchmarks/pipeline_simulation.py --quick    # 8 engines

An engine decodes one token of each of b running sequences in 12 ms + b * 0.06 ms and has 256 slots: about a model of
7 B parameters on an H100, assumed, not measured. Groups have 16 completions with lognormal lengths of mean 2,000 and
sigma 1, cut at 16,384 tokens. A weight sync takes 5 s. The learner takes as long as engines with filled slots, unless a
table says otherwise. The simulation asserts the bound on staleness at each group. It needs no engine and no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.pipeline.law import Law
from launch.pipeline.simulation import Outcome, Scenario, lognormal, simulate

LONGEST = 16_384
MEAN = 2_000
SIGMA = 1.0
WAVES = 2
"""Sequences of a step for each slot, where the batch grows with the engines."""
AT_END_S, ARRIVING_S = 3.0, 0.3
"""Seconds until a batch is scored: all of it at the end, or the rest of it where groups are scored as they arrive."""
PREFILL = 28_000.0
"""Tokens per second at which an engine computes a KV cache again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 engines and few steps, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    started = time.process_time()
    bench = Bench(args.seed, steps=4 if args.quick else 12)
    workers = 8 if args.quick else 64
    bench.modes(workers)
    bench.lookahead((8,) if args.quick else (8, 32, 128, 1024))
    if not args.quick:
        bench.engines((8, 64, 256, 1024))
    bench.tails(8 if args.quick else 16)
    bench.learners(8 if args.quick else 16)
    deviations = np.abs([run["deviation"] for run in bench.runs if run["deviation"] is not None])
    print(f"\nDeviation from the law in {deviations.size} runs: mean {percent(deviations.mean())} %, ", end="")
    print(f"largest {percent(deviations.max())} %")
    print(f"{len(bench.runs)} runs, {time.process_time() - started:.0f} CPU seconds")
    if args.json:
        args.json.write_text(json.dumps(bench.runs, indent=1) + "\n", encoding="utf-8")


class Bench:
    """The runs of all tables."""

    def __init__(self, seed: int, steps: int) -> None:
        self._seed, self._steps = seed, steps
        self.runs: list[dict[str, Any]] = []

    def run(self, scenario: Scenario, sigma: float = SIGMA, steps: int | None = None) -> tuple[Outcome, float | None]:
        """Return the outcome of a run and its deviation from the law. None: the law says nothing about it."""
        outcome = simulate(
            scenario, lognormal(MEAN, sigma, LONGEST, scenario.samples, self._seed), steps or self._steps
        )
        deviation = None
        if scenario.staleness and follows_law(scenario):
            deviation = outcome.step_s / law_s(scenario, sigma) - 1
        self.runs.append(asdict(scenario) | asdict(outcome) | {"sigma": sigma, "deviation": deviation})
        return outcome, deviation

    def modes(self, workers: int) -> None:
        """Print the table of modes."""
        sync = balanced(workers, workers * WAVES * 16, score_s=AT_END_S)
        apart = replace(sync, score_s=ARRIVING_S, overcommit=4)
        # On as many GPUs: those of the learner sample too, and those of the engines train.
        shared = replace(sync, workers=2 * workers, update_s=sync.update_s / 2, colocated=True)
        modes = {
            "synchronous, apart, scored at the end": sync,
            "synchronous, apart, scored as they arrive": replace(sync, score_s=ARRIVING_S),
            "the same, overcommit 4": apart,
            "colocated, synchronous": shared,
            **{f"colocated, partial rollouts, S = {s}": pipelined(shared, s, s) for s in (1, 2)},
            "one step off, drained": pipelined(apart, 1, 1, drained=True),
            **{f"in order, S = A = {s}": pipelined(apart, s, s) for s in (1, 2, 4, 8)},
            **{f"S = {s}, A = {s // 2}": pipelined(apart, s, s // 2) for s in (2, 4, 8)},
            "S = 4, A = 2, overcommit 1": pipelined(apart, 4, 2, overcommit=1),
            "S = 4, A = 2, cache recomputed": pipelined(apart, 4, 2, prefill_tokens_per_s=PREFILL),
            "first finished, no bound, A = 4": pipelined(apart, 4, 4, bounded=False),
        }
        heading(f"Modes: {workers} engines, {sync.prompts} prompts a step, learner {sync.update_s:.0f} s")
        table_head("mode", "step s", "speed-up", "slots filled %", "learner idle %", "lag mean / max", "law s")
        first = None
        for name, scenario in modes.items():
            outcome, deviation = self.run(scenario)
            first = first or outcome
            row(
                name,
                f"{outcome.step_s:.0f}",
                f"{first.step_s / outcome.step_s:.2f}",
                percent(outcome.slots_filled),
                percent(outcome.learner_idle),
                lag(outcome),
                "" if deviation is None else f"{outcome.step_s / (1 + deviation):.0f} ({signed(deviation)})",
            )

    def lookahead(self, sizes: Iterable[int]) -> None:
        """Print the table of engines and of (S, A), with the same batch for all."""
        pairs = [(0, 0), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8)]
        heading("Staleness and lookahead, 512 prompts a step: step s, lag mean / max, deviation from the law")
        table_head("engines", "learner s", *(f"S = {s}, A = {a}" for s, a in pairs))
        for workers in sizes:
            base = balanced(workers, 512, score_s=ARRIVING_S, overcommit=4)
            cells = []
            for staleness, ahead in pairs:
                outcome, deviation = self.run(pipelined(base, staleness, ahead))
                by_law = "" if deviation is None else f", {signed(deviation)}"
                cells.append(f"{outcome.step_s:.0f}, {lag(outcome)}{by_law}")
            row(f"{workers:,}", f"{base.update_s:.0f}", *cells)

    def engines(self, sizes: Iterable[int]) -> None:
        """Print the table of engines, with a batch that grows with them."""
        heading("Engines, 32 prompts a step for each: step s")
        table_head("engines", "synchronous, apart, scored at the end", "S = 4, A = 2", "speed-up")
        for workers in sizes:
            sync = balanced(workers, workers * WAVES * 16, score_s=AT_END_S)
            two = sync, pipelined(replace(sync, score_s=ARRIVING_S, overcommit=4), 4, 2)
            steps = [self.run(scenario, steps=4)[0].step_s for scenario in two]
            row(f"{workers:,}", *(f"{step_s:.0f}" for step_s in steps), f"{steps[0] / steps[1]:.2f}")

    def tails(self, workers: int) -> None:
        """Print the table of the spread of lengths."""
        heading(f"Spread of the lengths: {workers} engines, S = 4, A = 2")
        table_head("sigma", "synchronous s", "step s", "speed-up", "deviation from the law")
        for sigma in (0.25, 0.5, 1.0, 1.5):
            self._gain(f"{sigma:g}", balanced(workers, workers * WAVES * 16, sigma=sigma), sigma)

    def learners(self, workers: int) -> None:
        """Print the table of learners that are faster or slower than the engines."""
        heading(f"Time of the learner as a multiple of that of full engines: {workers} engines, S = 4, A = 2")
        table_head("learner", "synchronous s", "step s", "speed-up", "deviation from the law")
        scenario = balanced(workers, workers * WAVES * 16)
        for factor in (0.25, 0.5, 1.0, 2.0):
            self._gain(f"{factor:g}", replace(scenario, update_s=factor * scenario.update_s), SIGMA)

    def _gain(self, name: str, scenario: Scenario, sigma: float) -> None:
        sync, _ = self.run(replace(scenario, score_s=AT_END_S), sigma)
        outcome, deviation = self.run(pipelined(replace(scenario, score_s=ARRIVING_S, overcommit=4), 4, 2), sigma)
        cells = f"{sync.step_s:.0f}", f"{outcome.step_s:.0f}", f"{sync.step_s / outcome.step_s:.2f}"
        row(name, *cells, signed(deviation or 0.0))


def balanced(workers: int, prompts: int, sigma: float = SIGMA, **settings: Any) -> Scenario:
    """Return a scenario whose learner takes as long as engines with filled slots."""
    scenario = Scenario(
        workers=workers, slots=256, prompts=prompts, samples=16, token_s=0.012, sequence_s=6e-5, sync_s=5.0, **settings
    )
    return replace(scenario, update_s=scenario.full_s(mean_length(sigma)))


def pipelined(scenario: Scenario, staleness: int, lookahead: int, **settings: Any) -> Scenario:
    """Return a scenario with groups in flight."""
    return replace(scenario, staleness=staleness, lookahead=lookahead, **settings)


@cache
def lengths(sigma: float) -> NDArray[np.int64]:
    """Return a large sample of lengths."""
    return lognormal(MEAN, sigma, LONGEST, 1, 0)(200_000)[:, 0]


@cache
def mean_length(sigma: float) -> float:
    """Return the mean length after the cut."""
    return float(lengths(sigma).mean())


def follows_law(scenario: Scenario) -> bool:
    """Return True if nothing is in the scenario that the law leaves out."""
    changed = scenario.drained, scenario.colocated, not scenario.bounded, scenario.prefill_tokens_per_s is not None
    return scenario.overcommit > 1 and not any(changed)


def law_s(scenario: Scenario, sigma: float) -> float:
    """Return the time of a step by the law."""
    return Law(scenario, lengths(sigma)).step_s(scenario.staleness, scenario.lookahead)


def heading(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def table_head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def signed(share: float) -> str:
    return f"{100 * share:+.0f} %"


def lag(outcome: Outcome) -> str:
    return f"{outcome.staleness_mean:.1f} / {outcome.staleness_max}" if outcome.staleness_max else "0"


if __name__ == "__main__":
    main()

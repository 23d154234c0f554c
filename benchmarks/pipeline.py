"""What `pipeline.max_staleness` and `rollout.overcommit` gain, and what staleness costs, on this machine's CPU.

    python benchmarks/pipeline.py [--parts demo decode wait overcommit quality] [--seeds 3] [--json out.json]

The parts, all with the demo's model, data and real engines:

- demo: the demo preset.
- decode: completions of lognormal lengths, which all cost CPU.
- wait: groups that are held back for a lognormal time, which costs no CPU, as a slow tool would.
- overcommit: lognormal lengths, and eight times as many sequences as the engine has places.
- quality: held-out pass@k after 60 steps, several seeds, each a `maxpo train` of its own.

Engines and learner of a part start once; its modes alternate, and the steps of all rounds count, without the first ones
of each round. Nothing else should run: the load of the machine is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.long_tail import TOKENS, WAIT, LongTailWorker
from benchmarks.weight_sync import machine
from launch.cluster.ray_environment import secure_own_cluster
from maxpo.config import Config, PipelineConfig
from maxpo.configure.loading import load_config

DEMO = Path(__file__).resolve().parents[1] / "configs/presets/demo.yaml"
PARTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "demo": ({}, []),
    "decode": ({TOKENS: "24,1.0,236"}, ["rollout.max_new_tokens=236", "algorithm.prompts_per_step=16"]),
    "wait": ({WAIT: "0.6,1.0,8"}, ["algorithm.prompts_per_step=16"]),
}
"""Environment of the workers and settings of each part."""
MODES: dict[str, PipelineConfig] = {
    "S = 0": PipelineConfig(),
    "S = 1, drained": PipelineConfig(max_staleness=1, update="drained"),
    "S = 1": PipelineConfig(max_staleness=1),
    "S = 2, A = 1": PipelineConfig(max_staleness=2, lookahead=1),
    "S = 4, A = 2": PipelineConfig(max_staleness=4, lookahead=2),
    "S = 4, A = 4": PipelineConfig(max_staleness=4),
}
STEADY = 4
"""Steps at the begin of a run that do not count: the pipeline fills."""


def settings(*overrides: str) -> Config:
    """Return the settings of the demo without evaluations and checkpoints, with a learner that does not move."""
    quiet = ["eval.at_start=false", "eval.at_end=false", "eval.every=0", "checkpoint.every=0", "learner.lr=1e-9"]
    # Groups without signal are kept, so that each step has the same work.
    fixed = ["algorithm.drop_zero_signal=false", "learner.cpu_threads=1", "tracking.tensorboard=false"]
    return load_config([DEMO], [*quiet, *fixed, *overrides]).config


def steps_of(
    part: str, environment: dict[str, str], config: Config, modes: Sequence[str], steps: int, rounds: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the metrics of the steady steps of each mode, from engines that start once."""
    from launch.cluster.system import system
    from launch.run.preflight import load_data
    from maxpo.data.order import PromptStream
    from maxpo.loop.observer import Observer
    from maxpo.loop.train import Trainer
    from maxpo.tracking.run_log import RunLog

    train, _ = load_data(config)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, environment),
        patch("rollout.pool.RolloutWorker", LongTailWorker),
        system(config, Path(folder) / "log") as running,
    ):
        for number in range(rounds):
            for mode in modes:
                of_mode = replace(config, pipeline=MODES[mode], run=replace(config.run, steps=steps))
                log = RunLog(Path(tempfile.mkdtemp(dir=folder)), tensorboard=False, save_rollouts=0)
                stream = PromptStream(train, number)
                trainer = Trainer(of_mode, stream, [], running.rollouts, running.learner, log, Observer())
                # The last steps have less and less ahead of them.
                for metrics in trainer.run().history[STEADY : steps - MODES[mode].max_staleness]:
                    yield mode, metrics
                print(f"{part}: round {number + 1}, {mode} done", file=sys.stderr, flush=True)


def time_table(title: str, found: Sequence[tuple[str, dict[str, float]]]) -> Table:
    """Return a table of the modes: time of a step, and what engines and learner do meanwhile."""
    columns = ("step s", "x", "learner idle %", "engines idle %", "lag mean", "lag max", "spans > 1 %", "mismatch/kl")
    table = Table("mode", *columns, title=title)
    by_mode = {mode: [metrics for name, metrics in found if name == mode] for mode, _ in found}
    first = mean(m["time/step_s"] for m in next(iter(by_mode.values())))
    for mode, steps in by_mode.items():
        # A mean: in a pipeline a slow step may be followed by quick ones.
        step_s = mean(m["time/step_s"] for m in steps)
        table.add_row(
            mode,
            f"{step_s:.2f}",
            f"{first / step_s:.2f}",
            f"{100 * mean(m['pipeline/learner_idle'] for m in steps):.0f}",
            f"{100 * mean(m['pipeline/engines_idle'] for m in steps):.0f}",
            f"{mean(m['staleness/mean'] for m in steps):.2f}",
            f"{max(m['staleness/max'] for m in steps):.0f}",
            f"{100 * mean(m.get('staleness/spans', 0.0) for m in steps):.0f}",
            f"{mean(m.get('mismatch/kl', 0.0) for m in steps):.4f}",
        )
    return table


def overcommit_table(steps: int) -> tuple[Table, list[tuple[str, dict[str, float]]]]:
    """Return a table of `rollout.overcommit` in the synchronous and in an asynchronous loop."""
    table = Table("overcommit", "S", "step s", "sampling s", "places filled %", title="512 sequences, 64 places")
    everything: list[tuple[str, dict[str, float]]] = []
    for overcommit in (1, 2, 3, 4):
        environment, overrides = PARTS["decode"]
        more = ["algorithm.prompts_per_step=32", "rollout.max_concurrent_sequences=64"]
        config = settings(*overrides, *more, f"rollout.overcommit={overcommit}")
        modes = ["S = 0", "S = 2, A = 1"]
        found = list(steps_of("overcommit", environment, config, modes, steps, 1))
        everything += [(f"{overcommit}, {mode}", metrics) for mode, metrics in found]
        for mode in modes:
            own = [metrics for name, metrics in found if name == mode]
            table.add_row(
                str(overcommit),
                mode,
                f"{mean(m['time/step_s'] for m in own):.2f}",
                f"{mean(m['time/generate_s'] for m in own):.2f}",
                f"{100 * mean(m['pipeline/engines_filled'] for m in own):.0f}",
            )
    return table, everything


def quality_table(seeds: int, steps: int) -> tuple[Table, list[dict[str, Any]]]:
    """Return a table of held-out pass@k after training, for each mode and seed."""
    ks = (1, 4, 8, 16)
    table = Table(
        "mode", "seed", *(f"pass@{k}" for k in ks), "lag mean", title=f"after {steps} steps, 95 % over prompts"
    )
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for mode in ("S = 0", "S = 2, A = 1", "S = 4, A = 2"):
            pipeline = MODES[mode]
            with tempfile.TemporaryDirectory() as folder:
                overrides = [f"run.seed={seed}", f"run.steps={steps}", f"run.dir={folder}", "checkpoint.every=0"]
                overrides += ["eval.at_start=false", "eval.every=0", f"pipeline.max_staleness={pipeline.max_staleness}"]
                overrides += [f"pipeline.lookahead={pipeline.lookahead or 'null'}", "run.name=q"]
                command = [sys.executable, "-m", "launch.cli", "train", str(DEMO), *overrides]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                lines = [json.loads(line) for line in (Path(folder) / "q/metrics.jsonl").read_text().splitlines()]
            last = next(line for line in reversed(lines) if "eval/pass@1" in line)
            lag = mean(line["staleness/mean"] for line in lines if "staleness/mean" in line)
            rows.append({"mode": mode, "seed": seed, "lag": lag} | last)
            figures = (
                f"{100 * last[f'eval/pass@{k}']:.1f} [{100 * last[f'eval/pass@{k}/low']:.1f}, "
                f"{100 * last[f'eval/pass@{k}/high']:.1f}]"
                for k in ks
            )
            table.add_row(mode, str(seed), *figures, f"{lag:.2f}")
            print(f"quality: seed {seed}, {mode} done", file=sys.stderr, flush=True)
    return table, rows


def main() -> None:
    """Measure the parts that are asked for, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*PARTS, "overcommit", "quality"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    parser.add_argument("--modes", nargs="+", choices=[*MODES], default=[*MODES])
    parser.add_argument("--steps", type=int, default=20, help="steps of each mode in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quality-steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    secure_own_cluster()
    console, results = Console(width=130), dict[str, Any]()
    for part in args.parts:
        if part == "overcommit":
            table, results[part] = overcommit_table(args.steps)
        elif part == "quality":
            table, results[part] = quality_table(args.seeds, args.quality_steps)
        else:
            environment, overrides = PARTS[part]
            found = list(steps_of(part, environment, settings(*overrides), args.modes, args.steps, args.rounds))
            table, results[part] = time_table(part, found), found
        console.print(table)
        console.print(f"load {os.getloadavg()[0]:.1f}; {machine()}")
        if args.json:
            args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()

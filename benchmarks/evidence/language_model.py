"""Estimators on a real language model: the countdown model of the demo, trained by the real command, three seeds each.

    python benchmarks/evidence/language_model.py           # trains what is missing, then table, JSON and figure
    python benchmarks/evidence/language_model.py --draw    # only table, JSON and figure, from the finished run folders

Runs of `maxpo train configs/presets/demo.yaml` differ only in estimator, K and seed. Runs of equal seed see the same
prompts in the same order. The learning rate is the same for all, although the scales of the estimators differ (grpo
divides by the standard deviation of the group, maxrl by its mean, maxpo grows with K). AdamW divides by the running
size of the gradient, so a constant factor cancels, and the runs compare how an estimator weighs samples and groups
against each other. The gradient clip could break this, so the JSON has the number of steps in which the clip acted.

Finished runs are kept and only missing runs are trained, so the command continues after an interruption. Changes of the
code do not invalidate finished runs. After a change that matters, train again with --redo.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml
from common import LINES, figure, interval, save, save_figure
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
PRESET = "configs/presets/demo.yaml"
PASS = ("pass@1", "pass@4", "pass@8", "pass@16")
METHODS: dict[str, tuple[str, int]] = {
    "maxpo K=4": ("maxpo", 4),
    "maxpo K=8": ("maxpo", 8),
    "pkpo_loo_minus_one K=4": ("pkpo_loo_minus_one", 4),
    "rloo": ("rloo", 4),
    "grpo": ("grpo", 4),
    "maxrl": ("maxrl", 4),
}
"""Name in table and figure -> algorithm.advantage, algorithm.k (rloo, grpo and maxrl do not use it)."""
LOOKS = {name: LINES[advantage] for name, (advantage, _) in METHODS.items()} | {
    "maxpo K=8": {"color": "#707070", "linestyle": (0, (8, 2)), "marker": "o", "markerfacecolor": "white"}
}
Row = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training run and the paths of its files."""

    method: str
    seed: int
    steps: int
    out: Path

    @property
    def name(self) -> str:
        return f"{self.method.replace(' K=', '_k')}_seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def log(self) -> Path:
        return self.out / f"{self.name}.log"

    def command(self) -> list[str]:
        advantage, k = METHODS[self.method]
        return [
            *(sys.executable, "-m", "launch.cli", "train", PRESET),
            *(f"run.name={self.name}", f"run.dir={self.out}", f"run.seed={self.seed}", f"run.steps={self.steps}"),
            *("run.overwrite=true", f"algorithm.advantage={advantage}", f"algorithm.k={k}"),
            *(
                f"eval.every={-(-self.steps // 4)}",
                "checkpoint.every=0",
                "learner.cpu_threads=1",
                "tracking.tensorboard=false",
            ),
        ]

    def rows(self) -> list[Row]:
        """Lines of metrics.jsonl; empty if the run has not written any. A line cut by a kill ends the list."""
        rows: list[Row] = []
        path = self.folder / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def done(self) -> bool:
        """True if the last line is the evaluation after the last step."""
        last = (self.rows() or [{"step": -1}])[-1]
        return last["step"] == self.steps and "eval/pass@1" in last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=112, help="of each run; evaluated at every quarter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, one busy core each")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/evidence/language_model", help="for the run folders")
    parser.add_argument("--redo", action="store_true", help="train finished runs again")
    parser.add_argument("--draw", action="store_true", help="train nothing; use the finished runs")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    # Seed by seed, so that an interrupted series has complete seeds.
    runs = [Run(method, seed, args.steps, out) for seed in args.seeds for method in args.methods]
    if not args.draw:
        train([run for run in runs if args.redo or not run.done()], args.parallel)
    finished = [run for run in runs if run.done()]
    if missing := [run.name for run in runs if run not in finished]:
        print(f"without {len(missing)} runs that are not finished: {', '.join(missing)}")
    if not finished:
        sys.exit(f"no finished runs of {args.steps} steps in {out}")
    results = gather(finished)
    show(results)
    # --draw must not replace the command that made the runs.
    words = [word for word in sys.argv[1:] if word not in ("--draw", "--redo")]
    results["command"] = shlex.join(["python", "benchmarks/evidence/language_model.py", *words])
    print(save("language_model", results, busy_seconds(finished)))
    print(draw(results))


def train(runs: Sequence[Run], parallel: int) -> None:
    """Train `runs`, `parallel` at a time. An early end of this function also ends the current runs."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    waiting = deque(runs)
    running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
    started, finished = time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                run = waiting.popleft()
                running[start(run)] = run, time.monotonic()
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                run, since = running.pop(process)
                if process.returncode or not run.done():
                    tail = "\n".join(run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
                    sys.exit(f"{tail}\n\n{run.name} failed with exit code {process.returncode}; its log: {run.log}")
                finished += 1
                now = time.monotonic()
                left = (now - started) / finished * (len(runs) - finished)
                print(
                    f"{finished}/{len(runs)}  {run.name}  {now - since:.0f} s  "
                    f"pass@1 {100 * run.rows()[-1]['eval/pass@1']:.1f} %  about {left / 60:.0f} min left",
                    flush=True,
                )
    finally:
        end(list(running))


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End runs at once and cleanly. The second Ctrl-C also stops Ray, which SIGTERM would leave behind."""
    for _ in range(2):
        for process in processes:
            process.send_signal(signal.SIGINT)
        time.sleep(1 if processes else 0)
    for process in processes:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def start(run: Run) -> subprocess.Popen[bytes]:
    """Start one run in a new session, so that Ctrl-C reaches only this script, which then ends the runs.

    The run inherits the locked log. If this script is killed, a second script cannot train into a folder that is
    still in use.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{run.name} is being trained by another process; end that one first")
        log.truncate(0)
        return subprocess.Popen(run.command(), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def gather(runs: Sequence[Run]) -> dict[str, Any]:
    """Summarise the metrics of the runs for each method: evaluations over the steps, and the learner's share."""
    methods: dict[str, Any] = {}
    for method, (advantage, k) in METHODS.items():
        mine = {run.seed: run.rows() for run in runs if run.method == method}
        if not mine:
            continue
        training = {seed: [row for row in rows if "time/step_s" in row] for seed, rows in mine.items()}
        evals = {seed: {int(r["step"]): r for r in rows if "eval/pass@1" in r} for seed, rows in mine.items()}
        names = [*(f"eval/{name}" for name in PASS), "eval/unique", "eval/solved"]
        config = yaml.safe_load((next(r for r in runs if r.method == method).folder / "config.yaml").read_text())
        methods[method] = {
            "advantage": advantage,
            "k": k,
            "seeds": list(mine),
            "evaluations": {
                step: {
                    name.removeprefix("eval/"): over_seeds([e[step][name] for e in evals.values()]) for name in names
                }
                for step in next(iter(evals.values()))
            },
            "learner": {
                name: over_seeds([measure(rows, config) for rows in training.values()])
                for name, measure in LEARNER.items()
            },
        }
    return {"steps": runs[0].steps, "methods": methods}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, 95 % interval and the values of the seeds."""
    center, low, high = interval(values)
    return {name: round(v, 5) for name, v in (("mean", center), ("low", low), ("high", high))} | {
        "seeds": [round(v, 5) for v in values]
    }


def sampled_tokens(rows: Sequence[Row], config: dict[str, Any]) -> float:
    return sum(r["completions/tokens_mean"] * r["groups/sampled"] for r in rows) * config["algorithm"]["group_size"]


def total(rows: Sequence[Row], name: str) -> float:
    """Return the sum over the steps. A step without any signal has no metrics of the learner."""
    return sum(r.get(name, 0.0) for r in rows)


LEARNER: dict[str, Callable[[Sequence[Row], dict[str, Any]], float]] = {
    "trained_tokens": lambda rows, config: total(rows, "train/tokens"),
    "sampled_tokens": sampled_tokens,
    "trained_share": lambda rows, config: total(rows, "train/tokens") / sampled_tokens(rows, config),
    "dropped_groups_share": lambda rows, config: total(rows, "groups/zero_signal") / total(rows, "groups/sampled"),
    "update_s": lambda rows, config: median(r.get("time/update_s", 0.0) for r in rows),
    "generate_s": lambda rows, config: median(r["time/generate_s"] for r in rows),
    "step_s": lambda rows, config: median(r["time/step_s"] for r in rows),
    "unique_last_quarter": lambda rows, config: mean(r["completions/unique"] for r in rows[-(-len(rows) * 3 // 4) :]),
    "grad_norm": lambda rows, config: median(r.get("train/grad_norm", 0.0) for r in rows),
    "clipped_steps_share": lambda rows, config: mean(
        r.get("train/grad_norm", 0.0) > config["learner"]["grad_clip"] for r in rows
    ),
}
"""Figures of one run from its training steps and its settings. Times are medians over the steps."""


def busy_seconds(runs: Sequence[Run]) -> float:
    """Return the time during which at least one run was active, without the gaps between runs."""
    spans = sorted(((run.folder / "config.yaml").stat().st_mtime, run.rows()[-1]["time"]) for run in runs)
    seconds, until = 0.0, 0.0
    for first, last in spans:
        seconds += max(0.0, last - max(first, until))
        until = max(until, last)
    return seconds


def show(results: dict[str, Any]) -> None:
    """Print the last evaluation and the work of the learner."""
    methods = results["methods"]
    count = max(len(m["seeds"]) for m in methods.values())
    table = Table(title=f"after {results['steps']} steps; mean of {count} seed(s), 95 % interval over seeds, in %")
    table.add_column("", no_wrap=True)
    for name in (*PASS, "solved", "unique", "tokens trained", "groups dropped", "update s"):
        table.add_column(name, justify="right")

    def percent(value: dict[str, Any], ends: bool = True) -> str:
        return f"{100 * value['mean']:.1f}" + (
            f"\n{100 * value['low']:.1f}-{100 * value['high']:.1f}" if ends and count > 1 else ""
        )

    first = next(iter(methods.values()))["evaluations"][0]
    table.add_row("start", *(percent(first[name]) for name in (*PASS, "solved", "unique")))
    for method, m in methods.items():
        last, learner = m["evaluations"][results["steps"]], m["learner"]
        table.add_row(
            method,
            *(percent(last[name]) for name in (*PASS, "solved", "unique")),
            percent(learner["trained_share"], ends=False),
            percent(learner["dropped_groups_share"], ends=False),
            f"{learner['update_s']['mean']:.2f}",
        )
    console = Console()
    console.print(table) if console.is_terminal else Console(width=132).print(table)


def draw(results: dict[str, Any]) -> Path:
    """Draw pass@k over the steps: mean over seeds, bars from the lowest to the highest seed."""
    drawn, axes = figure(2, 2, width=9.5, height=3.3)
    methods = results["methods"]
    dodge = results["steps"] / 110  # methods are moved apart so that their bars do not hide each other
    for panel, name in zip(axes.flat, PASS, strict=True):
        for place, (method, m) in enumerate(methods.items()):
            points = [m["evaluations"][step][name] for step in m["evaluations"]]
            x = [step + (place - (len(methods) - 1) / 2) * dodge * (step > 0) for step in m["evaluations"]]
            y = [100 * p["mean"] for p in points]
            down = [100 * (p["mean"] - min(p["seeds"])) for p in points]
            up = [100 * (max(p["seeds"]) - p["mean"]) for p in points]
            panel.errorbar(
                x,
                y,
                yerr=(down, up),
                label=method,
                elinewidth=0.8,
                capsize=1.5,
                markersize=5,
                zorder=9 - place,
                **LOOKS[method],
            )
        panel.set_title(f"{name}, %")
        panel.set_xticks(list(next(iter(methods.values()))["evaluations"]))
    for panel in axes[-1]:
        panel.set_xlabel("training step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=5)
    return save_figure("language_model", drawn)


if __name__ == "__main__":
    main()

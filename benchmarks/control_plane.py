"""Cost of the driver: the real loop over up to 1,024 fake rollout workers and 100,000 groups in a step.

    python benchmarks/control_plane.py --json out.json

`maxpo.loop.train.Trainer`, `RolloutPool`, `Fleet`, `RewardPool` and Ray are real, on their own Ray cluster. The
workers are fakes: a few actors answer for all workers, each question by its own Ray call, with completions that were
made once. The fake learner only puts the batch into Ray's object store, as the driver does for the real learner. The
script measures the CPU seconds of the driver process, all threads together, for each group. It also measures wall time,
during which fakes and verifiers share the cores with the driver. Every case runs in its own process, after a small step
that warms up. The loop is synchronous and has no buffer between sampling and learning, so no buffer is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.driver_case import STAGES, Case, run
from benchmarks.weight_sync import machine

SMALL = Case(workers=64, group_size=8, tokens=8)
SIZED = Case(workers=64, groups=1000)
SERIES: dict[str, tuple[str, list[Case]]] = {
    "workers": (
        "more workers, which answer at once; 10,000 groups in a step",
        [Case(workers=workers, groups=10_000) for workers in (1, 4, 16, 64, 256, 1024)],
    ),
    "in_flight": (
        "more groups in flight, which arrive at 400 a second",
        [Case(workers=w, groups=groups, rate=400.0) for w, groups in ((16, 4000), (256, 6000), (1024, 12_000))],
    ),
    "groups": (
        "more groups in a step",
        [replace(SMALL, groups=g, steps=steps) for g, steps in ((100, 5), (1000, 5), (10_000, 1), (100_000, 1))],
    ),
    "tokens": (
        "longer completions",
        [*(replace(SIZED, tokens=tokens) for tokens in (16, 128, 512)), replace(SIZED, tokens=2048, groups=300)],
    ),
    "hosts": (
        "the same 64 workers, played by more actors: is the figure one of the fakes?",
        [replace(SIZED, hosts=hosts) for hosts in (1, 4, 16, 64)],
    ),
    "steps": ("ten steps, one after the other: does the memory grow?", [replace(SIZED, steps=10)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES), help="default: all")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    console = Console(highlight=False, width=150)
    found = machine()
    console.print(", ".join(f"{name} {value}" for name, value in found.items()))
    report: dict[str, Any] = {"machine": found, "series": {}}
    for name in args.series:
        about, cases = SERIES[name]
        results = [run(case) for case in cases]
        report["series"][name] = {"about": about, "cases": results}
        show(console, about, results)
    report["growth"] = {name: growth(series["cases"], name) for name, series in report["series"].items()}
    for name, fitted in report["growth"].items():
        if fitted:
            console.print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in fitted.items()))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def per_group(result: dict[str, Any], kind: str, stage: str = "all") -> float:
    """Return a time in milliseconds."""
    return 1000 * result[kind][stage] / result["case"]["groups"]


def memory_per_group(result: dict[str, Any]) -> float:
    """Return the growth of the driver's resident memory up to its peak, in KiB for each group of a step."""
    memory = result["memory_mib"]
    return 1024 * (memory["peak"] - memory["before"]) / result["case"]["groups"]


def growth(results: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Return the exponent of the power law that fits the growth of the driver's time for a group; 0: no growth."""
    axis = {"workers": "workers", "in_flight": "capacity", "groups": "groups", "tokens": "tokens"}.get(name)
    if axis is None or len(results) < 2:
        return {}
    x = [result["case"][axis] for result in results]
    log_x = [math.log(value) for value in x]

    def exponent(values: list[float]) -> float:
        return float(np.polyfit(log_x, [math.log(value) for value in values], 1)[0])

    fitted = {
        f"exponent of sampling CPU over {axis}": exponent([per_group(r, "cpu_s", "generate") for r in results]),
        f"exponent of all CPU over {axis}": exponent([per_group(r, "cpu_s") for r in results]),
    }
    if name == "workers":
        slope = np.polyfit(x, [r["cpu_s"]["workers"] for r in results], 1)[0]
        fitted["ms of each worker in each step"] = 1000 * float(slope)
    if name == "tokens":
        sizes = [r["case"]["tokens"] * r["case"]["group_size"] for r in results]
        fitted["microseconds of each token"] = 1000 * float(
            np.polyfit(sizes, [per_group(r, "cpu_s") for r in results], 1)[0]
        )
    return fitted


def show(console: Console, about: str, results: Sequence[dict[str, Any]]) -> None:
    """Print a series."""
    console.print(f"\n{about}\nmilliseconds of the driver for each group: CPU of all threads, by stage and in all")
    columns = ["workers", "actors", "groups", "in flight", "N x L", *STAGES, "all", "main thread", "wall"]
    table = Table(*columns, "groups/s", "KiB sent", "KiB held", box=None)
    for result in results:
        case = result["case"]
        table.add_row(
            *(str(case[key]) for key in ("workers", "hosts", "groups", "capacity")),
            f"{case['group_size']} x {case['tokens']}",
            *(f"{per_group(result, 'cpu_s', stage):.3f}" for stage in (*STAGES, "all")),
            *(f"{per_group(result, kind):.3f}" for kind in ("main_thread_s", "wall_s")),
            f"{1000 / per_group(result, 'cpu_s'):.0f}",
            f"{result['bytes_per_group'] / 1024:.1f}",
            f"{memory_per_group(result):.1f}",
        )
    console.print(table)
    rss = results[-1]["memory_mib"]["after_each_step"]
    if len(rss) > 1:
        console.print(f"RSS after each step, MiB: {', '.join(f'{size:.0f}' for size in rss)}")


if __name__ == "__main__":
    main()

"""Variance and signal-to-noise of the gradient on bandits, with cases for and against Leave-Two-Out.

    python benchmarks/evidence/bandit.py

The measurement is that of `maxpo check-advantage`. It has two parts:

- sparse: rewards of 0 and 1, success with probability p. Every possible group is counted, so the figures are exact.
- graded: ten arms with rewards 0, 1/9 .. 1 in equal shares, unchanged and shifted by 1 and by 10. The figures are exact
  for N = 8, and for N = 16 they are from 50,000 groups that all estimators share.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import LINES, figure, load, save, save_figure
from matplotlib.figure import Figure

from maxpo.estimators.bandit import Measured, bandit_of, bernoulli, compare

UNBIASED = ("maxpo", "pkpo_loo_minus_one", "pkpo_loo", "pkpo")
OTHERS = ("rloo", "grpo")
PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SIZES = {8: (1, 2, 4, 6), 16: (1, 2, 4, 8, 12), 32: (1, 2, 4, 8, 16)}
GRADED = ((8, 2), (8, 4), (16, 2), (16, 4), (16, 8))
SHIFTS = (0.0, 1.0, 10.0)
DRAWS = 50_000


def numbers(row: Measured) -> dict[str, float]:
    return {"variance": row.variance, "signal_to_noise": row.signal_to_noise, "nonzero": row.nonzero}


def sparse() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n, ks in SIZES.items():
        for k in ks:
            for p in PROBABILITIES:
                found = compare(bernoulli(p), n, k, names=(*UNBIASED, *OTHERS), timed=False).measured
                rows.append({"n": n, "k": k, "p": p} | {row.estimator: numbers(row) for row in found})
    return rows


def graded() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shift in SHIFTS:
        bandit = bandit_of([shift + i / 9 for i in range(10)], [1.0] * 10)
        for n, k in GRADED:
            result = compare(bandit, n, k, names=(*UNBIASED, *OTHERS), draws=DRAWS, timed=False)
            rows.append(
                {"n": n, "k": k, "shift": shift, "exact": result.exact}
                | {row.estimator: numbers(row) for row in result.measured}
            )
    return rows


def ratio(row: dict[str, Any]) -> float:
    """Return the variance of the non-negative estimator divided by that of maxpo. Above 1 maxpo is lower."""
    return row["pkpo_loo_minus_one"]["variance"] / row["maxpo"]["variance"]


def print_tables(results: dict[str, Any]) -> None:
    print("sparse: variance of pkpo_loo_minus_one / variance of maxpo (above 1: maxpo is better)")
    print(f"{'N':>3} {'K':>3}  " + "".join(f"p={p:<7g}" for p in PROBABILITIES))
    for n, ks in SIZES.items():
        for k in ks:
            cells = [ratio(r) for r in results["sparse"] if (r["n"], r["k"]) == (n, k)]
            print(f"{n:>3} {k:>3}  " + "".join(f"{c:<9.2f}" for c in cells))
    print("\nsparse: signal-to-noise ratio of rloo / that of maxpo (rloo follows the mean reward)")
    for n, ks in SIZES.items():
        for k in ks:
            cells = [
                r["rloo"]["signal_to_noise"] / r["maxpo"]["signal_to_noise"]
                for r in results["sparse"]
                if (r["n"], r["k"]) == (n, k)
            ]
            print(f"{n:>3} {k:>3}  " + "".join(f"{c:<9.2f}" for c in cells))
    print("\ngraded: total variance of the gradient of one group")
    print(f"{'shift':>6} {'N':>3} {'K':>3}  " + "".join(f"{name:>20}" for name in UNBIASED))
    for r in results["graded"]:
        print(
            f"{r['shift']:>6g} {r['n']:>3} {r['k']:>3}  "
            + "".join(f"{r[name]['variance']:>20.4g}" for name in UNBIASED)
        )


def draw(results: dict[str, Any]) -> Figure:
    drawn, axes = figure(2, 3, width=10.5, height=3.2)
    for axis, (n, ks) in zip(axes[0], SIZES.items(), strict=True):
        cells = np.array([[ratio(r) for r in results["sparse"] if (r["n"], r["k"]) == (n, k)] for k in ks])
        axis.imshow(np.log(cells).clip(min=0), cmap="Greys", vmin=0, vmax=2.5, aspect="auto")
        for (row, column), value in np.ndenumerate(cells):
            axis.text(
                column, row, f"{value:.2f}" if value < 10 else f"{value:.0f}", ha="center", va="center", fontsize=7,
                color="white" if value > 3 else "black", fontweight="bold" if value > 1 else "normal",
            )  # fmt: skip
        axis.set_xticks(range(len(PROBABILITIES)), [f"{p:g}" for p in PROBABILITIES], fontsize=7)
        axis.set_yticks(range(len(ks)), [str(k) for k in ks])
        axis.set(title=f"rewards 0/1, N = {n}", xlabel="probability of success", ylabel="K")
        axis.grid(visible=False)
    for axis, shift in zip(axes[1], SHIFTS, strict=True):
        rows = [r for r in results["graded"] if r["shift"] == shift]
        for name in UNBIASED:
            axis.plot(
                [r[name]["variance"] for r in rows], label=name, markersize=6, **(LINES[name] | {"linestyle": ""})
            )
        axis.set_yscale("log")
        axis.set_xticks(range(len(rows)), [f"{r['n']}, {r['k']}" for r in rows])
        axis.set(title=f"graded rewards {shift:g} .. {shift + 1:g}", xlabel="N, K", ylabel="variance of the gradient")
        axis.margins(x=0.12)
    drawn.set_layout_engine("constrained", wspace=0.05, hspace=0.08)
    handles, labels = axes[1][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4)
    drawn.suptitle(
        "Top: variance of pkpo_loo_minus_one / variance of maxpo; above 1 (bold, grey) maxpo is better", fontsize=10
    )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only print and draw again what was measured before")
    args = parser.parse_args()
    if args.draw:
        results = load("bandit")
    else:
        started = time.perf_counter()
        results: dict[str, Any] = {"draws": DRAWS, "sparse": sparse(), "graded": graded()}
        save("bandit", results, time.perf_counter() - started)
    print_tables(results)
    print(save_figure("bandit", draw(results)))


if __name__ == "__main__":
    main()

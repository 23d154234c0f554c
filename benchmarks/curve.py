"""Curve and table of a run, for docs/examples.

    python benchmarks/curve.py runs/smollm2

The script reads metrics.jsonl of the run folder, writes docs/examples/NAME.png and NAME.json, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "evidence"))

from common import figure, machine

OUT = Path(__file__).resolve().parents[1] / "docs/examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "reward/mean" in line]
    evaluations = [line for line in lines if "eval/pass@1" in line]
    ks = sorted(int(name.removeprefix("eval/pass@")) for name in evaluations[0] if name.rpartition("@")[2].isdigit())

    drawn, axes = figure(1, 2)
    left, right = axes[0]
    left.plot([s["step"] for s in steps], [100 * s["reward/mean"] for s in steps], color="#000000")
    left.set(title="training: mean reward of the samples of a step", xlabel="step", ylabel="%")
    for k, color, marker in zip(ks, ("#000000", "#2a6f97", "#c1440e", "#4f9d69"), "osD^", strict=False):
        mean = [100 * e[f"eval/pass@{k}"] for e in evaluations]
        ends = [[100 * e[f"eval/pass@{k}/{end}"] for e in evaluations] for end in ("low", "high")]
        errors = [[m - low for m, low in zip(mean, ends[0], strict=True)]]
        errors.append([high - m for m, high in zip(mean, ends[1], strict=True)])
        at = [e["step"] for e in evaluations]
        right.errorbar(at, mean, yerr=errors, color=color, marker=marker, capsize=3, label=f"pass@{k}")
    right.set(title="held-out problems, 95 % intervals", xlabel="step", ylim=(0, 100))
    right.legend(loc="lower right")
    OUT.mkdir(parents=True, exist_ok=True)
    drawn.savefig(OUT / f"{args.run.name}.png", dpi=110)

    kept = ("step", "time", "reward/mean", "time/step_s", "mismatch/logprob_abs", "policy/entropy", "groups/kept")
    rows = [{k: v for k, v in line.items() if k in kept or k.startswith("eval/pass@")} for line in steps + evaluations]
    about = {"command": f"maxpo train configs/presets/{args.run.name}.yaml", "machine": machine()}
    (OUT / f"{args.run.name}.json").write_text(json.dumps(about | {"lines": rows}, indent=1) + "\n", encoding="utf-8")

    print("| step |" + "".join(f" pass@{k} |" for k in ks) + "\n| --- |" + " --- |" * len(ks))
    for e in evaluations:
        cells = [tuple(100 * e[f"eval/pass@{k}{end}"] for end in ("", "/low", "/high")) for k in ks]
        print(f"| {e['step']} |" + "".join(f" {v:.1f} % [{low:.1f}, {high:.1f}] |" for v, low, high in cells))


if __name__ == "__main__":
    main()

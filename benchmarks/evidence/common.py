"""Shared parts of the evidence scripts: folder of results, description of the machine, style of figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

OUT = Path(__file__).parents[2] / "docs" / "evidence"
"""Results (JSON) and figures (PNG) that docs/evidence.md quotes."""

LINES = {
    "maxpo": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "pkpo_loo_minus_one": {"color": "#c1440e", "linestyle": "--", "marker": "s"},
    "pkpo_loo": {"color": "#e0a030", "linestyle": "-.", "marker": "^"},
    "pkpo": {"color": "#b0b0b0", "linestyle": ":", "marker": "v"},
    "rloo": {"color": "#2a6f97", "linestyle": "--", "marker": "D"},
    "grpo": {"color": "#4f9d69", "linestyle": "-.", "marker": "P"},
    "maxrl": {"color": "#8e5ea2", "linestyle": ":", "marker": "X"},
}
"""Style of each estimator in every figure. Line style and marker differ, so no colour is needed."""


def machine() -> str:
    """Return CPU, cores and torch of this machine, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"


def save(name: str, results: dict[str, Any], seconds: float) -> Path:
    """Write docs/evidence/NAME.json: the results, the command, the machine and the time it took."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    about = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], OUT.parents[1]), *sys.argv[1:]]),
        "machine": machine(),
        "seconds": round(seconds),
    }
    path.write_text(json.dumps(about | results, indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any]:
    """Read the results written by `save`."""
    return json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over seeds and the ends of its 95 % bootstrap interval."""
    x = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).choice(x, (4000, len(x))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(x.mean()), float(low), float(high)


def figure(rows: int, columns: int, *, width: float = 9.0, height: float = 3.4) -> tuple[Figure, Any]:
    """Return a figure in the common style, and its axes as a [rows, columns] array."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.3, "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False})
    return plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, constrained_layout=True)


def save_figure(name: str, drawn: Figure) -> Path:
    """Write docs/evidence/NAME.png."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.png"
    drawn.savefig(path, dpi=150)
    plt.close(drawn)
    return path

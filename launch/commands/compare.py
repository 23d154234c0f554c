"""The command `maxpo compare`: two evaluations of the same prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.terminal.printing import say
from launch.terminal.tables import difference_table
from maxpo.evaluation.comparison import Compared, compare
from maxpo.evaluation.result_file import read_evaluation


def compare_evaluations(first: Path, second: Path, console: Console, *, as_json: bool) -> int:
    """Compare what two `maxpo evaluate --out` wrote, and print it as a table or as JSON.

    Raises:
        InputError: one cannot be read, or they cannot be compared.
    """
    a, b = read_evaluation(first), read_evaluation(second)
    found = compare(a, b)
    if as_json:
        shown = {
            "a": a.model,
            "b": b.model,
            "overall": _as_json(found.overall),
            "sources": {source: _as_json(compared) for source, compared in found.sources.items()},
            "missing": found.missing,
        }
        print(json.dumps(shown, indent=2))
        return 0
    say(console, f"A: {a.model}\nB: {b.model}")
    console.print(difference_table(found))
    for text in found.missing:
        say(console, f"not compared: {text}")
    say(console, "In brackets 95 % intervals over prompts, each by itself; * excludes 0")
    return 0


def _as_json(compared: Compared) -> dict[str, Any]:
    figures = {name: asdict(d) | {"excludes_zero": d.excludes_zero} for name, d in compared.figures.items()}
    return asdict(compared) | {"figures": figures}

"""`maxpo compare`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from launch.commands.settings import Subparsers
from launch.terminal.printing import say

if TYPE_CHECKING:
    from maxpo.evaluation.comparison import Compared


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="compare two evaluations",
        description="Differences B - A of every figure, with paired intervals over prompts.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("a", type=Path, metavar="A", help="folder that `maxpo evaluate --out` wrote, or its eval.json")
    parser.add_argument("b", type=Path, metavar="B", help="the same of the other model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Compare two evaluations of the same prompts, as a table or as JSON. Return the exit code.

    Raises:
        InputError: an evaluation cannot be read, or the two cannot be compared.
    """
    from launch.terminal.tables import difference_table
    from maxpo.evaluation.comparison import compare
    from maxpo.evaluation.result_file import read_evaluation

    a, b = read_evaluation(args.a), read_evaluation(args.b)
    comparison = compare(a, b)
    if args.json:
        shown = {
            "a": a.model,
            "b": b.model,
            "overall": _as_json(comparison.overall),
            "sources": {source: _as_json(compared) for source, compared in comparison.sources.items()},
            "missing": comparison.missing,
        }
        print(json.dumps(shown, indent=2))
        return 0
    say(console, f"A: {a.model}\nB: {b.model}")
    console.print(difference_table(comparison))
    for text in comparison.missing:
        say(console, f"not compared: {text}")
    say(console, "In brackets 95 % intervals over prompts, each by itself; * excludes 0")
    return 0


def _as_json(compared: Compared) -> dict[str, object]:
    figures = {name: {**asdict(d), "excludes_zero": d.excludes_zero} for name, d in compared.figures.items()}
    return {**asdict(compared), "figures": figures}

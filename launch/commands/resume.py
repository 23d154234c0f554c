"""`maxpo resume`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.commands.settings import Subparsers, settings_of_run
from launch.commands.train import train, with_all_problems


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "resume", help="go on with a run", description="Go on with the run in RUN_DIR from its newest checkpoint."
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change settings, for example run.steps=500")


def run(args: argparse.Namespace, console: Console) -> int:
    """Continue a run. Return the exit code."""
    return train(with_all_problems(lambda: settings_of_run(args.folder, args.overrides)), console)

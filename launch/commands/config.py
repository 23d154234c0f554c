"""`maxpo config`."""

from __future__ import annotations

import argparse

from rich.console import Console

from launch.commands.settings import Subparsers
from launch.terminal.printing import say
from maxpo.configure.writing import explain


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser("config", help="look up settings")
    actions = parser.add_subparsers(dest="action", required=True)
    explained = actions.add_parser("explain", help="what a setting means")
    explained.set_defaults(run=run)
    explained.add_argument("key", nargs="?", help="for example algorithm.k, or a section; without it: all")


def run(args: argparse.Namespace, console: Console) -> int:
    """Print what settings mean. Return the exit code."""
    say(console, explain(args.key))
    return 0

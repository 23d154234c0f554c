"""`maxpo export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.commands.settings import Subparsers, settings_of_run
from launch.terminal.printing import say


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write the policy of a checkpoint",
        description="Write the policy of a checkpoint of RUN_DIR as a Hugging Face folder.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest good one)")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the policy of a checkpoint. Return the exit code."""
    config = settings_of_run(args.folder, []).config
    from launch.run.exporting import export_checkpoint

    source = export_checkpoint(config, args.folder, args.step, args.to)
    say(console, f"{args.to}: the policy of {source}")
    return 0

"""`maxpo doctor`."""

from __future__ import annotations

import argparse

from rich.console import Console

from launch.commands.settings import Subparsers


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine, and every node of a cluster",
        description="Check versions, GPUs, memory, disks and limits of this machine and, where a running cluster is "
        "named, of each of its nodes. Exit code 1 where something is an error.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("overrides", nargs="*", metavar="FILE.yaml key=value", help="settings to check for, if any")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the cluster (default: ray.address, RAY_ADDRESS)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Check the machine and the cluster. Return the exit code."""
    from launch.doctor.doctor import run_doctor

    return run_doctor(args.overrides, args.address, console)

"""`maxpo plan`."""

from __future__ import annotations

import argparse

from rich.console import Console

from launch.commands.settings import Subparsers, add_settings
from maxpo.configure.loading import load_config
from maxpo.errors import InputError


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="memory per GPU, before anything runs",
        description="What the run of FILE.yaml needs of each GPU, whether it fits, and which setting would make it "
        "fit. Arithmetic only; needs no GPU.",
    )
    parser.set_defaults(run=run)
    add_settings(parser)
    parser.add_argument(
        "--gpus", type=int, help="GPUs in all (default: those of the cluster settings, or what is needed)"
    )
    parser.add_argument("--gpu-gib", type=float, default=80.0, help="memory of each, GiB (default: 80)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the memory that a run needs. Return the exit code.

    Raises:
        InputError: the number or the size of the GPUs is out of range.
    """
    config = load_config([args.file], args.overrides).config
    from launch.cluster.placement import gpus_described
    from launch.memory import show_plan

    needed = config.learner.ranks + config.rollout.workers * config.rollout.tensor_parallel_size
    gpus = gpus_described(config.cluster) or needed if args.gpus is None else args.gpus
    if gpus < 1 or args.gpu_gib <= 0:
        raise InputError(f"--gpus {gpus} --gpu-gib {args.gpu_gib:g}: allowed is at least 1, and more than 0")
    return show_plan(config, console, gpus=gpus, gpu_gib=args.gpu_gib)

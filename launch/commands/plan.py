"""`maxpo plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.commands.settings import Subparsers, add_settings
from launch.terminal.printing import say
from maxpo.configure.loading import load_config
from maxpo.errors import InputError

TIMES = {
    "token": "time per token of a running completion (default: that of the run)",
    "update": "time of a learner update (default: that of the run)",
    "sync": "time of a weight sync (default: that of the run; 0 for a file)",
}
"""Options for times and their meaning."""


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="memory per GPU, and the gain of asynchronous steps, before anything runs",
        description="What the run of FILE.yaml needs of each GPU, whether it fits, and which setting would make it "
        "fit. With --lengths: the time of a step for each bound on staleness. Arithmetic only; needs no GPU.",
    )
    parser.set_defaults(run=run)
    add_settings(parser)
    parser.add_argument(
        "--gpus", type=int, help="GPUs in all (default: those of the cluster settings, or what is needed)"
    )
    parser.add_argument("--gpu-gib", type=float, default=80.0, help="memory of each, GiB (default: 80)")
    parser.add_argument(
        "--lengths",
        type=Path,
        metavar="RUN|FILE",
        help="say which pipeline.max_staleness is worth it, for the completions and times of an earlier run, or for a "
        "file with one length in tokens per line",
    )
    for part, text in TIMES.items():
        parser.add_argument(f"--{part}-s", type=float, metavar="SECONDS", help=f"{text}, with --lengths")


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the memory that a run needs and, with --lengths, the gain of asynchronous steps. Return the exit code.

    Raises:
        InputError: an option is out of range, or the lengths cannot be read.
    """
    config = load_config([args.file], args.overrides).config
    from launch.cluster.placement import gpus_described, place
    from launch.memory import show_plan
    from launch.pipeline.gain import show_gain
    from launch.pipeline.measured import GivenTimes, measure

    needed = config.learner.ranks + config.rollout.workers * config.rollout.tensor_parallel_size
    gpus = gpus_described(config.cluster) or needed if args.gpus is None else args.gpus
    if gpus < 1 or args.gpu_gib <= 0:
        raise InputError(f"--gpus {gpus} --gpu-gib {args.gpu_gib:g}: allowed is at least 1, and more than 0")
    given = GivenTimes(token_s=args.token_s, update_s=args.update_s, sync_s=args.sync_s)
    if args.lengths is None and given != GivenTimes():
        raise InputError("--token-s, --update-s and --sync-s need --lengths RUN|FILE")
    measured = None if args.lengths is None else measure(args.lengths, config, given)  # bad input before any table
    code = show_plan(config, console, gpus=gpus, gpu_gib=args.gpu_gib)
    if measured is None:
        return code
    if place(config, gpus=gpus).colocated:
        say(
            console,
            "learner and engines share the GPUs and take turns, so nothing overlaps and --lengths has no table. "
            "pipeline.max_staleness = 1 or 2 helps where few completions are long: they go on after the update",
        )
        return code
    show_gain(config, measured, console)
    return code

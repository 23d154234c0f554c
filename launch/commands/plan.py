"""`maxpo plan`."""

from __future__ import annotations

import argparse

from rich.console import Console

from maxpo.configure.loading import LoadedConfig
from maxpo.errors import InputError


def plan_command(loaded: LoadedConfig, args: argparse.Namespace, console: Console) -> int:
    """Run `maxpo plan`; the exit code."""
    from launch.cluster.placement import gpus_described
    from launch.memory import show_plan

    config = loaded.config
    asked = config.learner.ranks + config.rollout.workers * config.rollout.tensor_parallel_size
    gpus = gpus_described(config.cluster) or asked if args.gpus is None else args.gpus
    if gpus < 1 or args.gpu_gib <= 0:
        raise InputError(f"--gpus {gpus} --gpu-gib {args.gpu_gib:g}: allowed is at least 1, and more than 0")
    return show_plan(config, console, gpus=gpus, gpu_gib=args.gpu_gib)

"""`maxpo train`."""

from __future__ import annotations

import argparse

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from launch.commands.settings import Subparsers, add_settings
from launch.terminal.printing import say
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.writing import to_yaml


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser("train", help="train a model", description="Train as FILE.yaml says.")
    parser.set_defaults(run=run)
    add_settings(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the configuration, start nothing"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Train, or only check everything. Return the exit code."""
    loaded = load_config([args.file], args.overrides)
    return dry_run(loaded, console) if args.dry_run else train(loaded, console)


def train(loaded: LoadedConfig, console: Console) -> int:
    """Train. Return the exit code."""
    prepare_ray(loaded.config.ray)
    from launch.run.training import run_training

    return run_training(loaded, console)


def dry_run(loaded: LoadedConfig, console: Console) -> int:
    """Check everything that can be checked without starting anything. Return the exit code."""
    import torch

    from launch.cluster.placement import gpus_described, place
    from launch.run.preflight import load_data, test_learner
    from launch.run.resuming import remote_store
    from launch.run.wording import banner

    config = loaded.config
    sources: list[str] = []
    train_prompts, held_out = load_data(config, say=sources.append)
    described = gpus_described(config.cluster)
    place(config, gpus=torch.cuda.device_count() if described is None else described)
    remote_store(config)
    say(console, to_yaml(loaded))
    for line in (*sources, banner(config, train_prompts), test_learner(config)):
        say(console, line)
    say(console, f"{len(held_out)} held-out prompts x {config.eval.samples} completions per evaluation")
    say(console, "dry run: everything checked, nothing started")
    return 0

"""`maxpo train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from launch.commands.settings import Subparsers, add_settings
from launch.terminal.printing import say
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.problems import ConfigError
from maxpo.configure.writing import to_yaml
from maxpo.errors import ProblemsError


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
    loaded = with_all_problems(lambda: load_config([args.file], args.overrides), dry_run=args.dry_run)
    return dry_run(loaded, console) if args.dry_run else train(loaded, console)


def with_all_problems(load: Callable[[], LoadedConfig], *, dry_run: bool = False) -> LoadedConfig:
    """Return the settings that `load` returns. If they are wrong, whatever else is wrong is told in the same list.

    Raises:
        InputError: With all problems.
    """
    try:
        return load()
    except ConfigError as error:
        if not isinstance(error.loaded, LoadedConfig):
            raise
        from launch.run.readiness import get_ready

        try:
            get_ready(error.loaded, error.problems, dry_run=dry_run)
        except ProblemsError as everything:
            raise everything from error
        raise


def train(loaded: LoadedConfig, console: Console) -> int:
    """Train. Return the exit code."""
    prepare_ray(loaded.config.ray)
    from launch.run.training import run_training

    return run_training(loaded, console)


def dry_run(loaded: LoadedConfig, console: Console) -> int:
    """Check everything that can be checked without starting anything. Return the exit code."""
    from launch.cluster.ray_environment import cluster_address
    from launch.run.readiness import get_ready
    from launch.run.resuming import with_date
    from launch.run.wording import banner

    sources: list[str] = []
    ready = get_ready(with_date(loaded), say=sources.append, dry_run=True)
    config, address = loaded.config, cluster_address(loaded.config.ray)
    say(console, to_yaml(loaded))
    for line in (*sources, banner(config, ready.train, ready.held_out), ready.tested):
        say(console, line)
    if address is not None:
        say(console, f"not checked: the cluster at {address}, its nodes, GPUs, cores and memory")
    if config.checkpoint.remote and config.checkpoint.resume != "never":
        say(console, f"not checked: checkpoints in {config.checkpoint.remote}")
    say(console, f"dry run: everything {'else ' * (address is not None)}checked, nothing started")
    return 0

"""`maxpo probe`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from launch.commands.evaluate import policy_in
from launch.commands.settings import Subparsers, add_settings, override
from maxpo.configure.loading import load_config


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "probe",
        help="measure which estimator is best for a model and its rewards",
        description="Sample two groups for each of some training prompts of FILE.yaml with MODEL, take the gradient of "
        "each sample's log-probability, and compare the variance of all estimators' gradients. Trains nothing.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", type=Path, help="Hugging Face folder, or a run folder (its exported policy)")
    add_settings(parser)
    parser.add_argument("--groups", type=int, default=64, help="groups of algorithm.group_size samples (default: 64)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for probe.json and the completions (default: RUN_DIR-probe)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Probe a model on training prompts. Return the exit code."""
    loaded = load_config([args.file], [*args.overrides, override("model.path", policy_in(args.model))])
    prepare_ray(loaded.config.ray)
    from launch.run.probing import probe_model

    # With --json, standard output holds the JSON and nothing else.
    return probe_model(loaded, args.groups, args.out, Console(stderr=True) if args.json else console, as_json=args.json)

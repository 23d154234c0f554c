"""`maxpo evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from launch.commands.settings import Subparsers, add_settings, override
from maxpo.checkpoints.local import Checkpoints
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from maxpo.files import recover


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate a model",
        description="Unbiased pass@k, max@k, avg@n, maj@n of MODEL on the held-out prompts of FILE.yaml.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", type=Path, help="Hugging Face folder, or a run folder (its exported policy)")
    add_settings(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for eval.json and the completions (default: RUN_DIR-eval)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate a model on the held-out prompts. Return the exit code."""
    model = policy_in(args.model)
    loaded = load_config([args.file], [*args.overrides, override("model.path", model)])
    prepare_ray(loaded.config.ray)
    from launch.run.evaluating import evaluate_model

    # With --json, standard output holds the JSON and nothing else.
    return evaluate_model(loaded, model, args.out, Console(stderr=True) if args.json else console, as_json=args.json)


def policy_in(folder: Path) -> Path:
    """Return the folder of the model to evaluate: `folder` itself, or the exported policy of a run folder.

    Raises:
        InputError: the run folder has no exported policy; the message names the command that writes it.
    """
    recover(folder / "policy")
    if (folder / "policy" / "config.json").is_file():
        return folder / "policy"
    if not (folder / "config.yaml").is_file() or (folder / "config.json").is_file():
        return folder  # a folder that is no model is reported later, like any wrong model.path
    if not Checkpoints(folder / "checkpoints").steps():
        raise InputError(f"{folder} has neither an exported policy nor a checkpoint: nothing to evaluate yet")
    raise InputError(
        f"{folder} has no exported policy, since the run has not ended, but it has checkpoints. Write the policy of "
        f"the newest with\n  maxpo export {folder} --to DIR\nand evaluate DIR."
    )

"""`maxpo evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from maxpo.checkpoints.local import Checkpoints
from maxpo.configure.loading import load_config
from maxpo.errors import InputError


def policy_of(given: Path) -> Path:
    """The model that is meant: a Hugging Face folder itself, of a run folder its exported policy.

    Raises:
        InputError: a run folder without one; the message says which command writes it.
    """
    if (given / "policy" / "config.json").is_file():
        return given / "policy"
    if not (given / "config.yaml").is_file() or (given / "config.json").is_file():
        return given  # what is wrong with it, if anything, is said as of any model.path
    if not Checkpoints(given / "checkpoints").steps():
        raise InputError(f"{given} has neither an exported policy nor a checkpoint: nothing to evaluate yet")
    raise InputError(
        f"{given} has no exported policy, since the run has not ended, but it has checkpoints. Write the policy of the "
        f"newest with\n  maxpo export {given} --to DIR\nand evaluate DIR."
    )


def evaluate_command(args: argparse.Namespace, console: Console) -> int:
    """Run `maxpo evaluate`; the exit code."""
    model = policy_of(args.model)
    loaded = load_config([args.file], [*args.overrides, f"model.path={model}"])
    prepare_ray(loaded.config.ray)
    from launch.run.evaluating import evaluate_model

    return evaluate_model(loaded, model, args.out, Console(stderr=True) if args.json else console, as_json=args.json)

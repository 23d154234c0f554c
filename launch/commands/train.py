"""`maxpo train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.cluster.ray_environment import prepare_ray
from launch.terminal.printing import say
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError


def config_of_run(run: Path, overrides: Sequence[str]) -> LoadedConfig:
    """The settings of a run folder, to go on from its newest checkpoint."""
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(f"{run} is no run folder: it has no config.yaml")
    place = run.resolve()
    here = [f"run.dir={place.parent}", f"run.name={place.name}"]
    return load_config([file], ["checkpoint.resume=must", *overrides, *here], earlier_run=True)


def train_command(loaded: LoadedConfig, console: Console) -> int:
    """Run a training; the exit code."""
    prepare_ray(loaded.config.ray)
    from launch.run.training import run_training

    return run_training(loaded, console)


def dry_run(loaded: LoadedConfig, console: Console) -> int:
    """Check everything that can be checked without starting anything; the exit code."""
    import torch

    from launch.cluster.placement import gpus_described, place
    from launch.run.preflight import load_data
    from launch.run.resuming import remote_store
    from launch.run.wording import banner

    config = loaded.config
    sources: list[str] = []
    train_prompts, held_out = load_data(config, say=sources.append)
    described = gpus_described(config.cluster)
    place(config, gpus=torch.cuda.device_count() if described is None else described)
    remote_store(config)
    say(console, to_yaml(loaded))
    for line in (*sources, banner(config, train_prompts)):
        say(console, line)
    console.print(
        f"{len(held_out)} held-out prompts x {config.eval.samples} completions per evaluation", highlight=False
    )
    console.print("dry run: everything checked, nothing started", highlight=False)
    return 0

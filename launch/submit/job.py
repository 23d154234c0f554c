"""Checks of all submitted jobs, and the override with which their drivers continue the run."""

from __future__ import annotations

import shutil
from typing import Any

from omegaconf import OmegaConf

from launch.cluster.placement import gpus_described, place
from maxpo.configure.loading import LoadedConfig
from maxpo.errors import InputError

RESUME = "checkpoint.resume=auto"
"""Override with which every attempt continues from the newest checkpoint of the attempts before."""


def check_job(loaded: LoadedConfig) -> None:
    """Refuse settings that do not fit a job, which may be started several times.

    Raises:
        InputError: a setting does not fit, or the nodes have too few GPUs for the run.
    """
    config = loaded.config
    check_env(loaded)
    resume = config.checkpoint.resume
    if resume not in ("never", "auto"):
        raise InputError(
            f"checkpoint.resume = {resume}: a submitted job goes on from the newest checkpoint of its own run folder "
            "and starts anew where there is none; leave checkpoint.resume out, or set it to auto"
        )
    if "cuda" in (config.learner.device, config.rollout.device) and config.cluster.gpus_per_node is None:
        raise InputError(
            f"cluster.gpus_per_node is not set, but learner.device is {config.learner.device} and rollout.device is "
            f"{config.rollout.device}: set the number of GPUs to ask for on each node, such as cluster.gpus_per_node=8"
        )
    described = gpus_described(config.cluster)
    if described is not None:
        place(config, gpus=described)


def check_env(loaded: LoadedConfig) -> None:
    """Refuse settings that would put a secret of this machine into the job, where others can read it.

    Raises:
        InputError: a value of `launch.env` comes from the environment, or from another resolver.
    """
    written: Any = OmegaConf.to_container(loaded.tree.launch.env, resolve=False)
    for name, value in written.items():
        if "${" in str(value):
            raise InputError(
                f"launch.env.{name} = {value}: the value would be readable in the job; write it out if it is not "
                "a secret, and give secrets to the processes by the means of the cluster"
            )


def need_program(name: str) -> str:
    """Return the path of a program that submits jobs.

    Raises:
        InputError: the program is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise InputError(
            f"{name} is not on PATH, so nothing can be submitted from this machine; --dry-run prints the job, "
            "to be submitted elsewhere"
        )
    return path

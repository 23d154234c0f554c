"""Paths that every node of a cluster can read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from launch.cluster.ray_environment import cluster_address
from maxpo.config import Config

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the driver of a job."""


def for_all_nodes(config: Config) -> Config:
    """Return the settings with absolute paths, for processes on other nodes, which start in other folders.

    A job is left as it is: all its processes start in the folder that Ray unpacked.
    """
    if cluster_address(config.ray) is None or JOB in os.environ:
        return config
    deepspeed = config.learner.deepspeed
    return replace(
        config,
        model=replace(config.model, path=str(Path(config.model.path).absolute())),
        learner=replace(config.learner, deepspeed=deepspeed and str(Path(deepspeed).absolute())),
    )

"""Paths that every node of a cluster can read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from launch.cluster.ray_environment import cluster_address
from maxpo.config import Config

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's driver."""


def for_all_nodes(config: Config) -> Config:
    """The settings as processes on other nodes need them: they start in other folders, except those of a job."""
    if cluster_address(config.ray) is None or JOB in os.environ:
        return config
    deepspeed = config.learner.deepspeed
    return replace(
        config,
        model=replace(config.model, path=str(Path(config.model.path).absolute())),
        learner=replace(config.learner, deepspeed=deepspeed and str(Path(deepspeed).absolute())),
    )

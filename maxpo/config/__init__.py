"""Dataclasses with all settings of a run. `configure/` loads and checks the settings.

A new setting is one field: type, range (see `ranges.py`) or choices, default, and a docstring below with meaning, unit,
and the cases in which the setting has no effect. The modules here do not import `annotations` from `__future__`: a
lambda within a type hint that is a string would not see the names of its module.
"""

from maxpo.config.algorithm import AlgorithmConfig
from maxpo.config.cluster import ClusterConfig, RayConfig
from maxpo.config.data import DataConfig
from maxpo.config.environment import EnvironmentConfig
from maxpo.config.evaluation import EvalConfig
from maxpo.config.launch import LaunchConfig
from maxpo.config.learner import LearnerConfig
from maxpo.config.lora import LoraConfig
from maxpo.config.pipeline import PipelineConfig
from maxpo.config.reward import RewardConfig
from maxpo.config.rollout import RolloutConfig, SyncConfig
from maxpo.config.run import CheckpointConfig, ModelConfig, RunConfig, TrackingConfig
from maxpo.config.whole import Config

__all__ = [
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EnvironmentConfig",
    "EvalConfig",
    "LaunchConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "PipelineConfig",
    "RayConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SyncConfig",
    "TrackingConfig",
]

"""Every setting of a run, as dataclasses, a file for each group of sections; loading and checks are in `configure/`.

Each field has one docstring below it: meaning, unit, and when it has no effect.
"""

from maxpo.config.algorithm import AlgorithmConfig
from maxpo.config.cluster import ClusterConfig, RayConfig
from maxpo.config.data import DataConfig
from maxpo.config.environment import EnvironmentConfig
from maxpo.config.evaluation import EvalConfig
from maxpo.config.launch import LaunchConfig
from maxpo.config.learner import LearnerConfig
from maxpo.config.lora import LoraConfig
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
    "RayConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SyncConfig",
    "TrackingConfig",
]

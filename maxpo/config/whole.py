"""All settings of a run."""

from dataclasses import dataclass, field

from maxpo.config.algorithm import AlgorithmConfig
from maxpo.config.cluster import ClusterConfig, RayConfig
from maxpo.config.data import DataConfig
from maxpo.config.environment import EnvironmentConfig
from maxpo.config.evaluation import EvalConfig
from maxpo.config.launch import LaunchConfig
from maxpo.config.learner import LearnerConfig
from maxpo.config.pipeline import PipelineConfig
from maxpo.config.reward import RewardConfig
from maxpo.config.rollout import RolloutConfig, SyncConfig
from maxpo.config.run import CheckpointConfig, ModelConfig, RunConfig, TrackingConfig


@dataclass(kw_only=True)
class Config:
    """All sections of settings."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

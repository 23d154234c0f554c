"""One Ray cluster, one engine and one learner for all tests that need them: they start slowly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.cluster.system import system
from launch.run.preflight import load_data
from learner.group import LearnerGroup
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import RemoteError
from maxpo.types import Prompt
from rollout.pool import RolloutPool

DEMO = Path("configs/presets/demo.yaml")


@dataclass(frozen=True)
class Stack:
    """A running system on the demo model (tied embeddings), at temperature 0.7, ZeRO-3."""

    config: Config
    rollouts: RolloutPool
    learner: LearnerGroup
    train: list[Prompt]
    held_out: list[Prompt]
    before_weights: str
    """What generation said before any weights had a version."""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    overrides = [
        f"run.dir={folder}",
        "run.steps=10",
        "rollout.temperature=0.7",
        "learner.zero_stage=3",
        "learner.lr=5e-4",
        "learner.warmup_steps=0",
        "data.train_size=200",
        "eval.prompts=64",
        "rollout.max_concurrent_sequences=64",
        "sync.bucket_mib=1",
        "sync.timeout_s=10",
        "rollout.workers=2",
        "learner.ranks=2",
        "learner.cpu_threads=1",
        "algorithm.minibatches=2",
        "algorithm.kl_coef=0.01",
        "algorithm.entropy_coef=0.001",
    ]
    config = load_config([DEMO], overrides).config
    train, held_out = load_data(config)
    with system(config, folder / "log") as running:
        with pytest.raises(RemoteError) as refusal:
            running.rollouts.generate(train[:1], 2, "early")
        running.rollouts.confirm(running.learner.publish(running.rollouts.receivers()))
        yield Stack(config, running.rollouts, running.learner, train, held_out, str(refusal.value))

"""Systems and trained runs that start slowly, once for all tests that need them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cluster.system import System, system
from launch.run.preflight import load_data
from learner.group import LearnerGroup
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import RemoteError
from maxpo.types import Group, Prompt
from rollout.pool import RolloutPool
from tests.integration.commands import InProcess, maxpo, training
from tests.integration.learner_ranks import run_ranks

DEMO = Path("configs/presets/demo.yaml")
MODEL = "configs/models/countdown-0.5m"


@dataclass(frozen=True)
class Stack:
    """A running system on the demo model (tied embeddings), at temperature 0.7, ZeRO-3."""

    config: Config
    system: System
    train: list[Prompt]
    held_out: list[Prompt]
    first_groups: list[Group]
    """Samples of `train[:60]` with the draw "same" from the weights of the start."""
    before_weights: str
    """What generation said before any weights had a version."""

    @property
    def rollouts(self) -> RolloutPool:
        return self.system.rollouts

    @property
    def learner(self) -> LearnerGroup:
        return self.system.learner


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
        "sync.timeout_s=15",
        "rollout.workers=2",
        "rollout.max_restarts=100",
        "rollout.health_timeout_s=8",
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
        first = running.rollouts.generate(train[:60], 16, "same")
        yield Stack(config, running, train, held_out, first, str(refusal.value))


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path
    output: str
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped. Tests only read its folder."""
    folder = tmp_path_factory.mktemp("trained")
    done = maxpo(*training(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return Run(folder / "run", done.stdout, [json.loads(line) for line in lines])


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    monkeypatch.setenv("COLUMNS", "120")
    return InProcess(capsys)


Rounds = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""Jobs of `learner_ranks`, by name: for one rank, then for two ranks, then for one rank again."""
RankResult = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, float]]]
"""Gradients of the first optimizer step, weights at the end, metrics."""


@dataclass(frozen=True)
class Learned:
    """What the learner ranks did for one test file."""

    folder: Path
    """Where the jobs left their files."""
    results: dict[str, RankResult]


@pytest.fixture(scope="session")
def learned_by_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learned]:
    """The jobs of all selected test files that have a function `rank_jobs`, which maps a folder to `Rounds`.

    They share their processes, because these start more slowly than most jobs run.
    """
    modules = {getattr(item, "module", None) for item in request.session.items}
    makers = sorted((m.__name__, m.rank_jobs) for m in modules if m is not None and hasattr(m, "rank_jobs"))
    top = tmp_path_factory.mktemp("ranks")
    learned = {name: Learned(top / name, {}) for name, _ in makers}
    for file in learned.values():
        file.folder.mkdir()
    rounds = {name: make(learned[name].folder) for name, make in makers}
    for i, world in enumerate((1, 2, 1)):
        jobs = {(file, name): job for file, own in rounds.items() for name, job in own[i].items()}
        if jobs:
            results = run_ranks(world, MODEL, list(jobs.values()), str(top / f"{i}.pt"))
            for (file, name), result in zip(jobs, results, strict=True):
                learned[file].results[name] = result
    return learned


@pytest.fixture(scope="module")
def learned(request: pytest.FixtureRequest, learned_by_file: dict[str, Learned]) -> Learned:
    """What the learner ranks did for this test file."""
    return learned_by_file[request.module.__name__]

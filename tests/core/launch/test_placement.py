"""Devices, sync backend and who shares a GPU; the settings of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import launch.cluster.ray_cluster
from launch.cluster.placement import ResourceError, gpus_described, place
from maxpo.config import ClusterConfig, Config, LearnerConfig, RolloutConfig, RunConfig


def config(device: str = "cuda", placement: str = "auto", **kwargs: object) -> Config:
    ranks, backend = int(kwargs.pop("ranks", 1)), kwargs.pop("backend", "auto")  # type: ignore[call-overload]
    made = Config(
        run=RunConfig(name="x", steps=1),
        learner=LearnerConfig(lr=1.0, device=device, ranks=ranks),  # type: ignore[arg-type]
        rollout=RolloutConfig(device=device, max_new_tokens=1, **kwargs),  # type: ignore[arg-type]
        cluster=ClusterConfig(placement=placement),  # type: ignore[arg-type]
    )
    made.sync.backend = backend  # type: ignore[assignment]
    return made


def test_one_gpu_is_shared_and_more_are_kept_apart() -> None:
    one = place(config(gpu_memory_utilization=0.4), gpus=1)
    assert (one.sync_backend, one.colocated, one.gpus) == ("ipc", True, 1)
    eight = place(config(ranks=4, workers=2, tensor_parallel_size=2), gpus=8)
    assert (eight.sync_backend, eight.colocated, eight.gpus, eight.gpus_per_engine) == ("nccl", False, 8, 2)
    with pytest.raises(ResourceError, match=r"needs 8 GPUs .*learner.ranks = 4.*disaggregated.*the cluster has 7"):
        place(config(ranks=4, workers=2, tensor_parallel_size=2), gpus=7)
    with pytest.raises(ResourceError, match=r"gpu_memory_utilization = 0\.85 leaves too little"):
        place(config(), gpus=1)
    with pytest.raises(ResourceError, match=r"needs 2 GPUs"):
        place(config(placement="disaggregated"), gpus=1)
    evaluation = place(config(), gpus=1, with_learner=False)
    assert (evaluation.ranks, evaluation.colocated, evaluation.gpus) == (0, False, 1)


def test_colocated_every_gpu_has_a_rank_and_a_piece_of_an_engine() -> None:
    settings = {"ranks": 8, "workers": 2, "tensor_parallel_size": 4, "gpu_memory_utilization": 0.5}
    places = place(config(placement="colocated", **settings), gpus=8)
    assert (places.sync_backend, places.colocated, places.gpus) == ("ipc", True, 8)
    assert place(config(backend="ipc", **settings), gpus=8).colocated
    assert not place(config(**settings), gpus=16).colocated
    with pytest.raises(ResourceError, match=r"learner.ranks = 4 must be rollout.workers = 2 x .* = 4"):
        place(config(backend="ipc", **settings | {"ranks": 4}), gpus=8)


def test_cpu_machines_share_memory_and_mixed_devices_are_refused() -> None:
    places = place(config("cpu", ranks=3, workers=2), gpus=0)
    assert (places.sync_backend, places.ranks, places.engines, places.gpus) == ("shm", 3, 2, 0)
    assert places.rollout_env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert place(config("cpu", "colocated"), gpus=0).sync_backend == "shm"
    mixed = config("cpu")
    mixed.rollout.device = "cuda"
    with pytest.raises(ResourceError, match="equal devices only"):
        place(mixed, gpus=1)


def test_the_gpus_of_a_cluster_that_is_described() -> None:
    assert gpus_described(ClusterConfig(nodes=4, gpus_per_node=8)) == 32
    assert gpus_described(ClusterConfig(nodes=4)) is None


def test_folders_of_runs_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.cluster.ray_cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = launch.cluster.ray_cluster._pid_namespace()
    for name, owner in (
        ("dead", f"{here} {dead.pid}"),
        ("alive", f"{here} {os.getpid()}"),
        ("elsewhere", f"far {dead.pid}"),
        ("odd", "?"),
        ("none", None),
    ):
        folder = tmp_path / f"maxpo-ray-{name}"
        folder.mkdir()
        if owner:
            (folder / "owner").write_text(owner)
    (tmp_path / "other").mkdir()
    launch.cluster.ray_cluster._remove_leftovers()
    left = ["maxpo-ray-alive", "maxpo-ray-elsewhere", "maxpo-ray-none", "maxpo-ray-odd", "other"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left

"""A cluster of a run's own whose start is interrupted. Nothing here starts Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import launch.cluster.ray_cluster
from launch.cluster.ray_cluster import SCRATCH, cluster
from maxpo.configure.loading import load_config


def test_an_interrupted_start_of_ray_leaves_no_process_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config([Path("configs/presets/demo.yaml")], [f"run.dir={tmp_path}"]).config
    processes: list[subprocess.Popen[bytes]] = []

    def init(*, _temp_dir: str, **rest: Any) -> None:
        processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", _temp_dir]))
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.cluster.ray_cluster.ray, "init", init)
    monkeypatch.setattr(launch.cluster.ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(launch.cluster.ray_cluster.tempfile, "tempdir", str(tmp_path))
    logs = tmp_path / "run" / "log"
    with pytest.raises(KeyboardInterrupt), cluster(config, logs):
        pass
    _, alive = psutil.wait_procs([psutil.Process(p.pid) for p in processes if p.poll() is None], timeout=10)
    assert not alive
    assert not list(tmp_path.glob(f"{SCRATCH}*"))
    assert not logs.parent.exists()

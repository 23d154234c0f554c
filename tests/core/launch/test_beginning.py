"""The begin of a training: Ray beside the checks, and what is told and left behind if one of them fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import launch.cluster.ray_cluster
import launch.run.beginning
from launch.cluster.ray_cluster import SCRATCH, cluster
from launch.run.beginning import run_training
from launch.run.signals import PreemptedError
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.errors import InputError


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedConfig:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return load_config([Path("configs/presets/demo.yaml")], [f"run.dir={tmp_path}"])


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to the clusters of runs: begun, ended. None of them is real."""
    happened: list[str] = []

    @contextmanager
    def cluster(config: Any, log_folder: Path) -> Iterator[float]:
        happened.append("begun")
        try:
            yield 0.0
        finally:
            happened.append("ended")

    monkeypatch.setattr(launch.run.beginning, "cluster", cluster)
    return happened


def test_wrong_settings_end_the_cluster_that_has_started_beside_the_checks(
    loaded: LoadedConfig, clusters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(loaded: LoadedConfig, console: Console) -> Any:
        while not clusters:  # the checks end after the begin of the cluster
            pass
        raise InputError("the model is missing")

    monkeypatch.setattr(launch.run.beginning, "_check", check)
    with pytest.raises(InputError, match="the model is missing"):
        run_training(loaded, Console())
    assert clusters == ["begun", "ended"]


def test_wrong_settings_are_told_before_an_error_of_the_cluster(
    loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def no_cluster(config: Any, log_folder: Path) -> Any:
        failed.set()
        raise InputError("there is no room for Ray")

    def check(loaded: LoadedConfig, console: Console) -> Any:
        failed.wait()
        raise InputError("the model is missing")

    monkeypatch.setattr(launch.run.beginning, "cluster", no_cluster)
    monkeypatch.setattr(launch.run.beginning, "_check", check)
    with pytest.raises(InputError, match="the model is missing"):
        run_training(loaded, Console())
    monkeypatch.setattr(launch.run.beginning, "_check", lambda loaded, console: None)
    with pytest.raises(InputError, match="there is no room for Ray"):
        run_training(loaded, Console())


def test_a_signal_does_not_wait_for_the_checks(loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    end, checked = threading.Event(), threading.Event()

    def check(loaded: LoadedConfig, console: Console) -> None:
        end.wait(10)
        checked.set()

    def interrupted(config: Any, log_folder: Path) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(launch.run.beginning, "cluster", interrupted)
    monkeypatch.setattr(launch.run.beginning, "_check", check)
    with pytest.raises(PreemptedError, match="before the first step"):
        run_training(loaded, Console())
    assert not checked.is_set()
    end.set()


def test_a_running_cluster_hears_of_no_run_with_wrong_settings(
    loaded: LoadedConfig, clusters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(loaded: LoadedConfig, console: Console) -> Any:
        raise InputError("the model is missing")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(launch.run.beginning, "_check", check)
    with pytest.raises(InputError, match="the model is missing"):
        run_training(loaded, Console())
    assert not clusters


def test_an_interrupted_start_of_ray_leaves_no_process_and_no_folder(
    loaded: LoadedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def init(*, _temp_dir: str, **rest: Any) -> None:
        processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", _temp_dir]))
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.cluster.ray_cluster.ray, "init", init)
    monkeypatch.setattr(launch.cluster.ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(launch.cluster.ray_cluster.tempfile, "tempdir", str(tmp_path))
    logs = tmp_path / "run" / "log"
    with pytest.raises(KeyboardInterrupt), cluster(loaded.config, logs):
        pass
    _, alive = psutil.wait_procs([psutil.Process(p.pid) for p in processes if p.poll() is None], timeout=10)
    assert not alive
    assert not list(tmp_path.glob(f"{SCRATCH}*"))
    assert not logs.parent.exists()

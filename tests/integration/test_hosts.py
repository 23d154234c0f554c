"""A training over two hosts with a Ray cluster between them, one of which is cut off."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import Host, NoHostsError, two_hosts
from tests.integration.test_cli import MAXPO, environment

HEAD_PORT = 6379


@dataclass(frozen=True)
class Pair:
    """A cluster of two nodes; the head is `a`."""

    a: Host
    b: Host
    env: dict[str, str]
    folder: Path

    def ray_node(self, host: Host, *words: str) -> None:
        """Start Ray on a host."""
        ray = Path(MAXPO).with_name("ray")
        common = ("--num-cpus=4", f"--node-ip-address={host.address}", f"--temp-dir=/tmp/{host.name}")
        memory = "--object-store-memory=200000000"
        with (self.folder / f"{host.name}.log").open("a") as log:
            subprocess.Popen(
                host.command(str(ray), "start", "--block", "--disable-usage-stats", *common, memory, *words),
                env=self.env,
                stdout=log,
                stderr=log,
            )

    def join(self) -> None:
        """Start the node of `b`."""
        self.ray_node(self.b, f"--address={self.a.address}:{HEAD_PORT}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("hosts")
    env = environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        # A node is given up after 6 s instead of half a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }
    try:
        with two_hosts(f"maxpo{os.getpid()}") as (a, b):
            cluster = Pair(a, b, env, folder)
            cluster.ray_node(a, "--head", f"--port={HEAD_PORT}", "--include-dashboard=false", "--num-gpus=4")
            yield cluster
    except NoHostsError as error:
        pytest.skip(str(error))


def lines_of(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_run_over_two_hosts_survives_the_loss_of_one(pair: Pair) -> None:
    pair.join()
    folder, output = pair.folder / "two", pair.folder / "output.log"
    command = [
        *(MAXPO, "train", "configs/presets/demo.yaml", f"run.dir={pair.folder}", "run.name=two", "run.steps=8"),
        *(f"ray.address={pair.a.address}:{HEAD_PORT}", "cluster.nodes=2", "learner.ranks=2", "rollout.workers=2"),
        *("learner.device=cpu", "rollout.device=cpu", "learner.cpu_threads=1", "eval.at_start=false"),
        *("eval.prompts=32", "eval.samples=16", "algorithm.prompts_per_step=8", "data.train_size=100"),
        *("rollout.max_concurrent_sequences=64", "checkpoint.every=1", "sync.timeout_s=20"),
    ]
    with output.open("w") as log:
        run = subprocess.Popen(pair.a.command(*command), env=pair.env, stdout=log, stderr=subprocess.STDOUT)
    metrics = folder / "metrics.jsonl"
    end = time.monotonic() + 240
    while max((line["step"] for line in lines_of(metrics)), default=0) < 3:
        assert run.poll() is None and time.monotonic() < end, output.read_text()
        time.sleep(0.2)
    pair.b.cut_off()
    code = run.wait(300)
    said = output.read_text()
    assert code == 0, said
    spread = (
        f"{pair.a.address}: learner rank 0, rollout worker 0\n{pair.b.address}: learner rank 1, rollout worker 1",
        f"{pair.a.address}: learner rank 1, rollout worker 1\n{pair.b.address}: learner rank 0, rollout worker 0",
    )
    assert any(text in said for text in spread), said
    assert "died while" in said and "going on from" in said
    assert f"{pair.a.address}: learner rank 0, learner rank 1, rollout worker 0, rollout worker 1" in said
    steps = [line["step"] for line in lines_of(metrics) if "train/loss" in line]
    assert steps == list(range(1, 9))

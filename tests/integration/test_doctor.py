"""`maxpo doctor` against a real cluster with a token."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

DEMO = "configs/presets/demo.yaml"


def environment(token: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    keep_loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return clean | keep_loopback | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """Address and token of a head of this test's own; ended with the processes that it started, and no others."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="doc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = f"start --block --object-store-memory=100000000 --temp-dir={folder}"
        words += f" --head --port={port} --node-ip-address=127.0.0.1 --include-dashboard=false --num-cpus=1"
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words.split()],
            env=environment(token),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"127.0.0.1:{port}", token
        finally:
            mine = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            for pid in mine:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)


def doctor(*words: str, token: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment(token),
    )
    assert token not in done.stdout + done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_a_cluster_with_a_token(head: tuple[str, str], tmp_path: Path) -> None:
    address, token = head
    host, port = address.split(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
        time.sleep(0.2)
    time.sleep(2)  # the raylet comes after the port

    words = ["--address", address, DEMO, f"run.dir={tmp_path / 'runs'}", "cluster.nodes=2"]
    code, lines = doctor(*words, f"model.path={Path('configs/models/countdown-0.5m').absolute()}", token=token)
    assert code == 1  # there is one node of two
    assert f"ok       Ray at {address}: connected" in lines
    assert [line for line in lines if "cluster" in line and line[:5] == "error"] == [
        "error    cluster: 1 node; cluster.nodes = 2: start more of them (`ray start --address=...`)"
    ]
    (node,) = (line for line in lines if line[9:].startswith("node 127.0.0.1"))
    assert "same versions as here" in node or "open files" in node
    assert "run.dir" not in node
    assert list(tmp_path.iterdir()) == []

    start = time.monotonic()
    code, lines = doctor("--address", address, token=secrets.token_hex(32))
    assert code == 1
    assert [line for line in lines if line.startswith("error")] == [
        f"error    Ray at {address}: the token was not accepted: use the one that the head was started with, and "
        "RAY_AUTH_MODE=token"
    ]
    assert time.monotonic() - start < 25

"""A running Ray cluster with a token: on two hosts where the machine allows that, else one node on loopback."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hosts import Host, NoHostsError, two_hosts

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """What a user needs to know of it."""

    address: str
    dashboard: str
    env: dict[str, str]
    log: Path
    hosts: tuple[Host, Host] | None
    """The head is on the first; None: one node on loopback, since `why` says what this machine does not allow."""
    why: str

    def command(self, *words: str) -> list[str]:
        """The words as a command on the head's host, from this environment's programs."""
        here = [str(BIN / words[0]), *words[1:]]
        return self.hosts[0].command(*here) if self.hosts else here

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command on the head's host to its end."""
        return subprocess.run(self.command(*words), env=self.env, capture_output=True, text=True, timeout=timeout)

    def start(self, *words: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a command on the head's host; what it prints goes to a file."""
        with output.open("w") as file:
            return subprocess.Popen(self.command(*words), env=self.env, stdout=file, stderr=subprocess.STDOUT)

    def join(self) -> None:
        """Start a node on the second host."""
        assert self.hosts
        node = (str(BIN / "ray"), "start", f"--address={self.address}", f"--node-ip-address={self.hosts[1].address}")
        _start_ray(self.hosts[1].command(*node), self.env, self.log, self.hosts[1].name)


def _start_ray(command: list[str], env: dict[str, str], log: Path, name: str) -> subprocess.Popen[bytes]:
    more = ("--block", "--num-cpus=4", f"--temp-dir=/tmp/{name}", "--object-store-memory=200000000")
    with log.open("a") as file:
        return subprocess.Popen([*command, *more], env=env, stdout=file, stderr=file)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A head with a dashboard and 4 GPUs that are only said to be there; everything is ended afterwards."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
    env = clean | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A node is given up after 6 s instead of half a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
        "COLUMNS": "120",
    }
    with ExitStack() as resources:
        name = f"maxpo{os.getpid()}"
        try:
            hosts, why = resources.enter_context(two_hosts(name)), ""
        except NoHostsError as error:
            hosts, why = None, str(error)
        ip = hosts[0].address if hosts else "127.0.0.1"
        port, dashboard = _free_ports()
        cluster = Cluster(f"{ip}:{port}", f"http://127.0.0.1:{dashboard}", env, folder / "ray.log", hosts, why)
        head = cluster.command("ray", "start", "--head", f"--node-ip-address={ip}", f"--port={port}", "--num-gpus=4")
        head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        process = _start_ray(head, env, cluster.log, f"{name}-a")
        resources.callback(_end, process)
        yield cluster


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a head and all that belongs to it at once: a gentle end takes Ray half a minute."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()

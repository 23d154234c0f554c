"""The Ray cluster of a run: a running one, or one that the run starts on loopback for itself."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError

from launch.cluster.head import check_head
from launch.cluster.ray_environment import cluster_address, require_one_node, use_token
from maxpo.config import Config, RayConfig
from maxpo.errors import InputError

VLLM_SOCKETS = "VLLM_RPC_BASE_PATH"
"""Environment variable with the folder of vLLM's sockets."""
SCRATCH, OWNER = "maxpo-ray-", "owner"
"""Prefix of the folder of a cluster on loopback, and name of the file in it that identifies its process."""


@contextmanager
def cluster(config: Config, log_folder: Path) -> Iterator[float]:
    """Connect to the running Ray cluster, or start one on loopback and stop it at the end. Wait for all nodes.

    `launch.cluster.ray_environment.prepare_ray` must be called before ray is imported. What Ray has logged about the
    workers of a cluster on loopback is copied to `log_folder`. A running cluster keeps its own.

    Yields:
        Number of GPUs of the cluster.

    Raises:
        InputError: the cluster cannot be reached or used, or has too few nodes after `cluster.node_timeout_s`.
    """
    address = cluster_address(config.ray)
    if address is not None:
        _connect(address, config.ray)
        try:
            yield wait_for_nodes(config)
        finally:
            ray.shutdown()
        return
    require_one_node(config)
    _remove_leftovers()
    # Unix socket paths are limited to about 100 characters, which a run folder may exceed. Ray opens its own folder to
    # everybody, so it goes below one that only this user can enter.
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    (scratch / OWNER).write_text(f"{_pid_namespace()} {os.getpid()}", encoding="utf-8")
    try:
        with own_sigterm(), _sockets_of_engines(scratch / "vllm"), _whole_or_nothing(scratch):
            ray.init(
                num_cpus=config.ray.num_cpus,
                object_store_memory=config.ray.object_store_mib << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(scratch / "ray"),
            )
        try:
            yield wait_for_nodes(config)
        finally:
            ray.shutdown()
    finally:
        _keep_logs(scratch, log_folder)


def own_logs(config: Config, log_folder: Path) -> Path | None:
    """Return the folder of the workers' output, or None on a running cluster, which keeps it in Ray's logs."""
    return None if cluster_address(config.ray) else log_folder


def _connect(address: str, settings: RayConfig) -> None:
    try:
        with own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, AuthenticationError) as error:
        raise InputError(f"the Ray cluster at {address} cannot be used: {error}") from error
    if address == "auto":  # only Ray knows its address
        head: Any = ray.get_runtime_context().gcs_address
        try:
            check_head(head, use_token(required=settings.require_token), require_token=settings.require_token)
        except InputError:
            ray.shutdown()
            raise


def wait_for_nodes(config: Config) -> float:
    """Wait for `cluster.nodes` nodes with `cluster.gpus_per_node` GPUs each. Return the GPUs of the whole cluster.

    Raises:
        InputError: too few nodes have joined after `cluster.node_timeout_s`.
    """
    wanted, each = config.cluster.nodes, config.cluster.gpus_per_node or 0
    end = time.monotonic() + config.cluster.node_timeout_s
    while True:
        nodes = [(n["NodeManagerAddress"], n["Resources"].get("GPU", 0.0)) for n in ray.nodes() if n["Alive"]]
        if sum(gpus >= each for _, gpus in nodes) >= wanted:
            return sum(gpus for _, gpus in nodes)
        if time.monotonic() > end or not cluster_address(config.ray):
            present = ", ".join(f"{address} ({gpus:g} GPUs)" for address, gpus in sorted(nodes))
            raise InputError(
                f"cluster.nodes = {wanted}, each with cluster.gpus_per_node = {each} GPUs, but after "
                f"cluster.node_timeout_s = {config.cluster.node_timeout_s:g} s the cluster has: {present}"
            )
        time.sleep(0.5)


def _remove_leftovers() -> None:
    """Remove the folders of runs that were killed before they could remove them."""
    for owner in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/{OWNER}"):
        try:
            namespace, _, pid = owner.read_text(encoding="utf-8").rpartition(" ")
            ours = owner.stat().st_uid == os.getuid() and namespace == _pid_namespace()
            dead = ours and not psutil.pid_exists(int(pid))
        except (OSError, ValueError):
            continue
        if dead:
            shutil.rmtree(owner.parent, ignore_errors=True)


def _pid_namespace() -> str:
    """Return the name of the space in which process ids are unique. Machines and containers may share the folder."""
    link = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {link.readlink() if link.is_symlink() else ''}"


@contextmanager
def _whole_or_nothing(scratch: Path) -> Iterator[None]:
    """End the processes of a cluster whose start fails or is interrupted. Ray itself may not know them yet."""
    try:
        yield
    except BaseException:
        ray.shutdown()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any(str(scratch) in word for word in process.cmdline()):
                    process.kill()
        raise


@contextmanager
def _sockets_of_engines(folder: Path) -> Iterator[None]:
    """Let the workers of the cluster that starts here keep vLLM's sockets in a folder, instead of in /tmp."""
    folder.mkdir()
    before = os.environ.get(VLLM_SOCKETS)
    os.environ[VLLM_SOCKETS] = str(folder)
    try:
        yield
    finally:
        del os.environ[VLLM_SOCKETS]
        if before is not None:
            os.environ[VLLM_SOCKETS] = before


def _keep_logs(scratch: Path, log_folder: Path) -> None:
    """Copy what Ray has logged about workers to the run folder, and remove the folder of the cluster."""
    with suppress(OSError):  # on a full disk, the error that ended the run matters more
        for file in scratch.glob("ray/session_latest/logs/worker-*"):
            if stat.S_ISREG(file.lstat().st_mode) and _has_output(file):  # never the target of a link
                log_folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, log_folder)
    shutil.rmtree(scratch, ignore_errors=True)


def _has_output(file: Path) -> bool:
    """Return True if a worker has written to its file in Ray's logs, besides what Ray writes about itself."""
    with file.open("rb") as lines:
        return any(not line.startswith((b":job_id:", b":actor_name:", b":task_name:")) for line in lines)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM at the end. Ray installs its own when it is initialised."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)

"""The Ray cluster of a run: one that is running, or one of its own on loopback."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
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
from launch.cluster.ray_environment import cluster_address, use_token
from maxpo.config import Config, RayConfig
from maxpo.errors import InputError

SCRATCH, OWNER = "maxpo-ray-", "owner"
"""Beginning of the name of a cluster's own folder, and the file in it that says which process it is of."""


@contextmanager
def cluster(config: Config, log_folder: Path) -> Iterator[float]:
    """A Ray cluster, with all its nodes: the running one, or one of this run's own on loopback, stopped at the end.

    Needs `launch.cluster.ray_environment.prepare_ray` before ray is imported. The logs of the own cluster's workers
    end up in `log_folder`; a running cluster keeps its own.

    Yields:
        The number of GPUs of the cluster.

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
    if config.cluster.nodes > 1:
        raise InputError(
            f"cluster.nodes = {config.cluster.nodes}, but a run's own cluster has one node: give the address of a "
            "running one by ray.address or RAY_ADDRESS"
        )
    _remove_leftovers()
    # Unix socket paths are limited to about 100 characters, which a run folder may exceed.
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    (scratch / OWNER).write_text(f"{_where()} {os.getpid()}", encoding="utf-8")
    try:
        with own_sigterm():
            ray.init(
                num_cpus=config.ray.num_cpus,
                object_store_memory=config.ray.object_store_mib << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(scratch),
            )
        try:
            yield wait_for_nodes(config)
        finally:
            ray.shutdown()
    finally:
        _keep_logs(scratch, log_folder)


def own_logs(config: Config, log_folder: Path) -> Path | None:
    """Where the workers' output ends up; None on a running cluster, which keeps it in Ray's logs on each node."""
    return None if cluster_address(config.ray) else log_folder


def _connect(address: str, settings: RayConfig) -> None:
    try:
        with own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, AuthenticationError) as error:
        raise InputError(f"the Ray cluster at {address} cannot be used: {error}") from error
    if address == "auto":  # what that is, only Ray could tell
        found: Any = ray.get_runtime_context().gcs_address
        try:
            check_head(found, use_token(required=settings.require_token), require_token=settings.require_token)
        except InputError:
            ray.shutdown()
            raise


def wait_for_nodes(config: Config) -> float:
    """Wait for `cluster.nodes` nodes with `cluster.gpus_per_node` GPUs each; the number of GPUs of the cluster.

    Raises:
        InputError: there are fewer after `cluster.node_timeout_s`.
    """
    wanted, each = config.cluster.nodes, config.cluster.gpus_per_node or 0
    end = time.monotonic() + config.cluster.node_timeout_s
    while True:
        nodes = [(n["NodeManagerAddress"], n["Resources"].get("GPU", 0.0)) for n in ray.nodes() if n["Alive"]]
        if sum(gpus >= each for _, gpus in nodes) >= wanted:
            return sum(gpus for _, gpus in nodes)
        if time.monotonic() > end or not cluster_address(config.ray):
            found = ", ".join(f"{address} ({gpus:g} GPUs)" for address, gpus in sorted(nodes))
            raise InputError(
                f"cluster.nodes = {wanted}, each with cluster.gpus_per_node = {each} GPUs, but after "
                f"cluster.node_timeout_s = {config.cluster.node_timeout_s:g} s the cluster has: {found}"
            )
        time.sleep(0.5)


def _remove_leftovers() -> None:
    """The folders of runs that were killed before they could remove them."""
    for owner in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/{OWNER}"):
        try:
            place, _, pid = owner.read_text(encoding="utf-8").rpartition(" ")
            ours = owner.stat().st_uid == os.getuid() and place == _where()
            dead = ours and not psutil.pid_exists(int(pid))
        except (OSError, ValueError):
            continue
        if dead:
            shutil.rmtree(owner.parent, ignore_errors=True)


def _where() -> str:
    """What process ids are unique in: the folder may be shared by machines and containers."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}"


def _keep_logs(scratch: Path, log_folder: Path) -> None:
    """Copy what the workers printed to the run folder, and remove the cluster's own folder."""
    with suppress(OSError):  # on a full disk what led here matters more
        log_folder.mkdir(parents=True, exist_ok=True)
        for file in scratch.glob("session_latest/logs/worker-*"):
            if file.stat().st_size:
                shutil.copy(file, log_folder)
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Inside, whoever takes SIGTERM for itself gives it back at the end: Ray does when it is initialised."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)

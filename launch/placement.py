"""Where things run: devices, the Ray cluster, and the resources of every actor."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from launch.signals import own_sigterm
from maxpo.config import Config
from maxpo.errors import InputError
from rollout.worker import environment

SHARED_GPU_LIMIT = 0.6
"""Largest `rollout.gpu_memory_utilization` where learner and engine share a GPU."""

CPU_SHARE = 0.01
"""CPUs that an actor asks Ray for on a CPU machine: processes share the cores, and Ray must not queue them."""


SCRATCH, OWNER = "maxpo-ray-", "owner"
"""Beginning of the name of a cluster's own folder, and the file in it that says which process it is of."""


class ResourceError(InputError):
    """The machines do not have what the configuration asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices and Ray options of every actor of a run."""

    learner_device: str
    rollout_device: str
    sync_backend: str
    learner_options: list[dict[str, Any]]
    rollout_options: list[dict[str, Any]]


def place(config: Config, *, gpus: float, with_learner: bool = True) -> Placement:
    """Decide devices, sync backend and actor options.

    Args:
        config: a checked configuration.
        gpus: GPUs of the cluster.
        with_learner: False for an evaluation, which has rollout workers only.

    Raises:
        ResourceError: more GPUs are asked for than there are, or the sync backend does not fit the devices.
    """
    learner, rollout = config.learner, config.rollout
    # The driver may run on a machine without a GPU, so the cluster is asked and not torch.
    automatic = "cuda" if gpus > 0 else "cpu"
    learner_device, rollout_device = (automatic if d == "auto" else d for d in (learner.device, rollout.device))
    backend = config.sync.backend
    if learner_device != rollout_device and with_learner:
        raise ResourceError(
            f"learner.device is {learner_device} and rollout.device is {rollout_device}; weights travel between "
            "equal devices only: set both to the same"
        )
    one_each = learner.ranks == rollout.workers == rollout.tensor_parallel_size == 1
    if backend == "auto":
        backend = "gloo" if rollout_device == "cpu" else "ipc" if one_each and gpus == 1 else "nccl"
    if backend == "ipc" and with_learner:
        if not one_each:
            raise ResourceError(
                f"sync.backend = ipc is for one learner rank and one engine on one GPU, not for learner.ranks = "
                f"{learner.ranks}, rollout.workers = {rollout.workers}, rollout.tensor_parallel_size = "
                f"{rollout.tensor_parallel_size}: use nccl"
            )
        if rollout.gpu_memory_utilization > SHARED_GPU_LIMIT:
            raise ResourceError(
                f"rollout.gpu_memory_utilization = {rollout.gpu_memory_utilization:g} leaves too little of the GPU to "
                f"the learner that shares it; allowed with sync.backend = ipc is at most {SHARED_GPU_LIMIT:g}"
            )
    ranks = learner.ranks if with_learner else 0
    share = 0.5 if backend == "ipc" and with_learner else 1.0
    learner_gpus = share * ranks if learner_device == "cuda" else 0.0
    rollout_gpus = share * rollout.workers * rollout.tensor_parallel_size if rollout_device == "cuda" else 0.0
    if learner_gpus + rollout_gpus > gpus:
        raise ResourceError(
            f"the run needs {learner_gpus + rollout_gpus:g} GPUs (learner.ranks = {learner.ranks}, rollout.workers = "
            f"{rollout.workers} x rollout.tensor_parallel_size = {rollout.tensor_parallel_size}, sync.backend = "
            f"{backend}), the cluster has {gpus:g}: lower one of them, or set the devices to cpu"
        )
    learner_env = {"DS_ACCELERATOR": learner_device, "TOKENIZERS_PARALLELISM": "false"}
    if learner_device == "cpu":
        threads = str(learner.cpu_threads)
        learner_env |= {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    tensor_parallel_gpus = share * rollout.tensor_parallel_size
    return Placement(
        learner_device=learner_device,
        rollout_device=rollout_device,
        sync_backend=backend,
        learner_options=[_options(learner_env, share if learner_device == "cuda" else 0) for _ in range(ranks)],
        rollout_options=[
            _options(environment(rollout, rollout_device), tensor_parallel_gpus if rollout_device == "cuda" else 0)
            for _ in range(rollout.workers)
        ],
    )


def _options(env: dict[str, str], gpus: float) -> dict[str, Any]:
    return {"num_cpus": CPU_SHARE, "num_gpus": gpus, "runtime_env": {"env_vars": env}}


@contextmanager
def cluster(config: Config, log_folder: Path) -> Iterator[float]:
    """A Ray cluster: the one at `ray.address`, or one of this run's own on loopback, stopped at the end.

    The own cluster needs `launch.rayenv.secure_own_cluster()` before ray is imported; the logs of its workers end
    up in `log_folder`.

    Yields:
        The number of GPUs of the cluster.
    """
    settings = config.ray
    if settings.address is not None:
        with own_sigterm():
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield ray.cluster_resources().get("GPU", 0.0)
        finally:
            ray.shutdown()
        return
    _remove_leftovers()
    # Unix socket paths are limited to about 100 characters, which a run folder may exceed.
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    (scratch / OWNER).write_text(f"{_where()} {os.getpid()}", encoding="utf-8")
    try:
        with own_sigterm():
            ray.init(
                num_cpus=settings.num_cpus,
                object_store_memory=settings.object_store_mib << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(scratch),
            )
        try:
            yield ray.cluster_resources().get("GPU", 0.0)
        finally:
            ray.shutdown()
    finally:
        _keep_logs(scratch, log_folder)


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

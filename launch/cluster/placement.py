"""Devices of a run, and the way in which weights travel: decided from the settings and the number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from maxpo.config import ClusterConfig, Config
from maxpo.errors import InputError
from rollout.vllm_engine.process_env import COMPUTE_ON_CPU, environment_variables

SHARED_GPU_LIMIT = 0.6
"""Largest `rollout.gpu_memory_utilization` when learner and engine share a GPU."""


class ResourceError(InputError):
    """The machines lack the resources that the configuration asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of a run, and the environment variables of its actors."""

    learner_device: str
    rollout_device: str
    sync_backend: str
    colocated: bool
    """True if every engine is on the node of its learner ranks. On GPUs the engine shares the GPUs of the ranks."""
    ranks: int
    """Number of learner ranks; 0 in an evaluation."""
    engines: int
    gpus_per_engine: int
    """0 on CPU."""
    learner_env: dict[str, str]
    rollout_env: dict[str, str]

    @property
    def gpus(self) -> int:
        """Number of GPUs that the run needs."""
        engines = self.engines * self.gpus_per_engine
        return engines if self.colocated else engines + (self.ranks if self.learner_device == "cuda" else 0)


def gpus_described(cluster: ClusterConfig) -> int | None:
    """Return the number of GPUs that the settings give the cluster, or None if they give none."""
    return None if cluster.gpus_per_node is None else cluster.nodes * cluster.gpus_per_node


def place(config: Config, *, gpus: float, with_learner: bool = True) -> Placement:
    """Decide on the devices, on the sync backend, and on who shares a GPU.

    Args:
        config: a checked configuration.
        gpus: number of GPUs of the cluster. The driver may run on a machine without one, so torch is not asked.
        with_learner: False for an evaluation, which has rollout workers only.

    Raises:
        ResourceError: the run needs more GPUs than the cluster has, or the sync backend does not fit the devices.
    """
    learner, rollout = config.learner, config.rollout
    automatic = "cuda" if gpus > 0 else "cpu"
    learner_device, rollout_device = (automatic if d == "auto" else d for d in (learner.device, rollout.device))
    if learner_device != rollout_device and with_learner:
        raise ResourceError(
            f"learner.device is {learner_device} and rollout.device is {rollout_device}; weights travel between "
            "equal devices only: set both to the same"
        )
    colocated = with_learner and _is_colocated(config, rollout_device, gpus)
    if colocated and rollout_device == "cuda":
        _check_sharing(config)
    backend = config.sync.backend
    if backend == "auto":
        backend = "shm" if rollout_device == "cpu" else "ipc" if colocated else "nccl"
    placement = Placement(
        learner_device=learner_device,
        rollout_device=rollout_device,
        sync_backend=backend,
        colocated=colocated,
        ranks=learner.ranks if with_learner else 0,
        engines=rollout.workers,
        gpus_per_engine=rollout.tensor_parallel_size if rollout_device == "cuda" else 0,
        learner_env=_learner_env(config, learner_device),
        rollout_env=environment_variables(rollout, rollout_device),
    )
    if placement.gpus > gpus:
        raise ResourceError(
            f"the run needs {placement.gpus} GPUs (learner.ranks = {learner.ranks}, rollout.workers = "
            f"{rollout.workers} x rollout.tensor_parallel_size = {rollout.tensor_parallel_size}, "
            f"{'colocated' if colocated else 'disaggregated'}), the cluster has {gpus:g}: lower one of them, or set "
            "the devices to cpu"
        )
    return placement


def _is_colocated(config: Config, device: str, gpus: float) -> bool:
    """Return True if the settings ask for sharing, or if they leave it open and a single GPU must do everything."""
    wanted, backend = config.cluster.placement, config.sync.backend
    shards = config.rollout.workers * config.rollout.tensor_parallel_size
    single = device == "cuda" and gpus == config.learner.ranks == shards == 1
    return wanted == "colocated" or backend == "ipc" or (wanted == "auto" and backend == "auto" and single)


def _check_sharing(config: Config) -> None:
    """Raise unless each learner rank shares a GPU with one shard of an engine, and both fit into its memory."""
    learner, rollout = config.learner, config.rollout
    if learner.ranks != rollout.workers * rollout.tensor_parallel_size:
        raise ResourceError(
            f"sync.backend = ipc is for GPUs that a learner rank and an engine share, so learner.ranks = "
            f"{learner.ranks} must be rollout.workers = {rollout.workers} x rollout.tensor_parallel_size = "
            f"{rollout.tensor_parallel_size}: change one of them, or use nccl"
        )
    if rollout.gpu_memory_utilization > SHARED_GPU_LIMIT:
        raise ResourceError(
            f"rollout.gpu_memory_utilization = {rollout.gpu_memory_utilization:g} leaves too little of the GPU to "
            f"the learner that shares it; at most {SHARED_GPU_LIMIT:g} is allowed when they are colocated"
        )


def _learner_env(config: Config, device: str) -> dict[str, str]:
    env = {"DS_ACCELERATOR": device, "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        env |= COMPUTE_ON_CPU | {"OMP_NUM_THREADS": str(config.learner.cpu_threads)}
    return env

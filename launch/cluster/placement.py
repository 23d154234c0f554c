"""What runs on which devices, and how weights travel: decided from the settings and the number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from maxpo.config import ClusterConfig, Config
from maxpo.errors import InputError
from rollout.vllm_engine.process_env import environment_variables

SHARED_GPU_LIMIT = 0.6
"""Largest `rollout.gpu_memory_utilization` where learner and engine share a GPU."""


class ResourceError(InputError):
    """The machines do not have what the configuration asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of a run, and the environment of its actors."""

    learner_device: str
    rollout_device: str
    sync_backend: str
    colocated: bool
    """Every engine is where its learner ranks are; on GPUs it shares theirs."""
    ranks: int
    engines: int
    gpus_per_engine: int
    """0 on CPU."""
    learner_env: dict[str, str]
    rollout_env: dict[str, str]

    @property
    def gpus(self) -> int:
        """GPUs that the run needs."""
        engines = self.engines * self.gpus_per_engine
        return engines if self.colocated else engines + (self.ranks if self.learner_device == "cuda" else 0)


def gpus_described(cluster: ClusterConfig) -> int | None:
    """The GPUs of the cluster as the settings describe it; None where they do not."""
    return None if cluster.gpus_per_node is None else cluster.nodes * cluster.gpus_per_node


def place(config: Config, *, gpus: float, with_learner: bool = True) -> Placement:
    """Decide devices, sync backend and who shares a GPU.

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
    if learner_device != rollout_device and with_learner:
        raise ResourceError(
            f"learner.device is {learner_device} and rollout.device is {rollout_device}; weights travel between "
            "equal devices only: set both to the same"
        )
    backend, wanted = config.sync.backend, config.cluster.placement
    shards = rollout.workers * rollout.tensor_parallel_size
    single = rollout_device == "cuda" and gpus == learner.ranks == shards == 1
    shared = wanted == "colocated" or backend == "ipc" or (wanted == "auto" and backend == "auto" and single)
    colocated = with_learner and shared
    if backend == "auto":
        backend = "gloo" if rollout_device == "cpu" else "ipc" if colocated else "nccl"
    if colocated and rollout_device == "cuda":
        if learner.ranks != shards:
            raise ResourceError(
                f"sync.backend = ipc is for GPUs that a learner rank and an engine share, so learner.ranks = "
                f"{learner.ranks} must be rollout.workers = {rollout.workers} x rollout.tensor_parallel_size = "
                f"{rollout.tensor_parallel_size}: change one of them, or use nccl"
            )
        if rollout.gpu_memory_utilization > SHARED_GPU_LIMIT:
            raise ResourceError(
                f"rollout.gpu_memory_utilization = {rollout.gpu_memory_utilization:g} leaves too little of the GPU to "
                f"the learner that shares it; allowed where they are colocated is at most {SHARED_GPU_LIMIT:g}"
            )
    learner_env = {"DS_ACCELERATOR": learner_device, "TOKENIZERS_PARALLELISM": "false"}
    if learner_device == "cpu":
        threads = str(learner.cpu_threads)
        learner_env |= {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    found = Placement(
        learner_device=learner_device,
        rollout_device=rollout_device,
        sync_backend=backend,
        colocated=colocated,
        ranks=learner.ranks if with_learner else 0,
        engines=rollout.workers,
        gpus_per_engine=rollout.tensor_parallel_size if rollout_device == "cuda" else 0,
        learner_env=learner_env,
        rollout_env=environment_variables(rollout, rollout_device),
    )
    if found.gpus > gpus:
        raise ResourceError(
            f"the run needs {found.gpus} GPUs (learner.ranks = {learner.ranks}, rollout.workers = {rollout.workers} x "
            f"rollout.tensor_parallel_size = {rollout.tensor_parallel_size}, "
            f"{'colocated' if colocated else 'disaggregated'}), the cluster has {gpus:g}: lower one of them, or set "
            "the devices to cpu"
        )
    return found

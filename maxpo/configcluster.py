"""Settings of clusters and of job submission: the sections `cluster`, `ray` and `launch` of `config.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal


def is_host_port(text: str) -> bool:
    """Whether it is the address of a cluster's head, such as 10.0.0.1:6379."""
    return re.fullmatch(r"[^\s:/]+:\d{1,5}", text) is not None


@dataclass(kw_only=True)
class ClusterConfig:
    """The nodes, and what of a run goes where."""

    nodes: int = 1
    """Nodes to wait for before anything is placed. More than 1 needs a running cluster (`ray.address`)."""
    gpus_per_node: int | None = None
    """GPUs that each node must have; null: as many as it has. `maxpo submit slurm` and `k8s` ask for so many."""
    node_timeout_s: float = 300.0
    """Seconds to wait for the nodes, and for room on them."""
    placement: Literal["auto", "disaggregated", "colocated"] = "auto"
    """disaggregated: learner ranks and engines have GPUs of their own. colocated: every GPU has a learner rank and an
    engine, or a shard of one; engines sleep while the learner trains, and weights go over by CUDA IPC. auto: colocated
    where the cluster has a single GPU. On CPU it only decides which processes are on the same node."""
    sleep_level: int = 1
    """What engines give up while they sleep, with `placement: colocated` on GPUs. 1: the KV cache, and their weights
    are moved to host memory; 2: both are dropped. No effect otherwise."""
    interface: str | None = None
    """Network interface of gloo and NCCL on every node, such as eth0; null: the one with the node's address in Ray."""


@dataclass(kw_only=True)
class RayConfig:
    """The Ray cluster."""

    address: str | None = None
    """host:port of a running Ray cluster, or auto. local: one is started on this machine, on loopback, and stopped
    at the end; null: RAY_ADDRESS where it is set, else as local."""
    require_token: bool = True
    """Refuse a running cluster without token authentication. Off: whoever reaches its ports can run code there."""
    num_cpus: int | None = None
    """CPUs of the cluster that is started; null: as many as the machine has. No effect with `address`."""
    object_store_mib: int = 512
    """Object store of the cluster that is started, of each node where a submitted job does it, MiB. No effect with
    `address`."""


@dataclass(kw_only=True)
class LaunchConfig:
    """What `maxpo submit` asks a scheduler for. No effect on the training itself."""

    time_limit_min: int = 1440
    """Wall-clock limit of one attempt, minutes."""
    stop_before_s: int = 600
    """Seconds before the limit at which the run is told to stop; more than `checkpoint.stop_within_s`."""
    max_attempts: int = 20
    """How often the job is started, the first time included; each further attempt resumes."""
    cpus_per_node: int = 8
    """CPUs of each node."""
    memory_gib: int | None = None
    """Memory of each node, GiB; null: the scheduler's default."""
    setup: list[str] = field(default_factory=list[str])
    """Lines of bash that every node runs first, such as `source /shared/maxpo/.venv/bin/activate`; with `submit ray`
    only the driver does, nodes stay as they were started. No effect on k8s: the image holds all that is needed."""
    env: dict[str, Any] = field(default_factory=dict[str, Any])
    """Environment variables of all processes. Secrets do not belong here: the job's script shows them."""
    log_dir: str = "jobs"
    """slurm: folder of the job's script and output, below it one for each run name. All nodes must see it at the same
    path. No effect otherwise."""
    slurm_options: list[str] = field(default_factory=list[str])
    """slurm: further options of sbatch, such as `--partition=gpu`. They come last and so overrule those that other
    settings stand for. No effect otherwise."""
    k8s_image: str | None = None
    """k8s: container image with maxpo and all that it needs; must be set there. No effect otherwise."""
    k8s_claim: str | None = None
    """k8s: PersistentVolumeClaim with the model, the data and the run folder; must be set there. With more than one
    node it needs the access mode ReadWriteMany. No effect otherwise."""
    k8s_mount: str = "/maxpo"
    """k8s: where all pods have the volume of `k8s_claim`; relative paths of the settings start there. No effect
    otherwise."""
    k8s_secret: str | None = None
    """k8s: Secret whose keys become environment variables of all pods, for settings such as ${oc.env:NAME}; null: none.
    No effect otherwise."""
    k8s_shm_gib: int = 16
    """k8s: shared memory (/dev/shm) of each pod, GiB, which counts as part of `memory_gib`. No effect otherwise."""
    k8s_user: int = 1000
    """k8s: number of the user and the group that all processes run as, not 0. No effect otherwise."""

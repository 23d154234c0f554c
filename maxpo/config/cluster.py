"""Settings of clusters and of job submission: the sections `cluster`, `ray` and `launch` of `config.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


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

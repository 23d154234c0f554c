"""Settings of the sections `cluster` and `ray`."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from maxpo.config.ranges import PROCESSES, SECONDS, Must, between, matches


def is_host_port(text: str) -> bool:
    """Return True if the text is the address of a cluster's head, such as 10.0.0.1:6379."""
    match = re.fullmatch(r"[^\s:/]+:(\d{1,5})", text, re.ASCII)
    return match is not None and 1 <= int(match[1]) <= 65535


@dataclass(kw_only=True)
class ClusterConfig:
    """The nodes, and the placement of a run on the nodes."""

    nodes: Annotated[int, PROCESSES] = 1
    """Number of nodes to wait for before anything is placed. More than 1 needs a running cluster (`ray.address`)."""
    gpus_per_node: Annotated[int | None, between(1, 64)] = None
    """GPUs that each node must have. null: as many as the node has. `maxpo submit slurm` and `k8s` request
    this number."""
    node_timeout_s: Annotated[float, SECONDS] = 300.0
    """Seconds to wait for the nodes, and for free resources on the nodes."""
    placement: Literal["auto", "disaggregated", "colocated"] = "auto"
    """Placement of learner and engines on the GPUs. disaggregated: learner ranks and engines have separate GPUs.
    colocated: every GPU has a learner rank and an engine, or a shard of an engine; engines sleep while the learner
    trains, and weights are sent by CUDA IPC. auto: colocated if the cluster has a single GPU, else disaggregated. On
    CPU the placement only decides which processes share a node."""
    sleep_level: Annotated[int, Must(lambda v: v in (1, 2), "Must be 1 or 2.")] = 1
    """Memory that sleeping engines release, with `placement: colocated` on GPUs. 1: the KV cache is dropped, and the
    engine's weights are moved to host memory. 2: both are dropped. No effect otherwise."""
    interface: Annotated[str | None, matches(r"[\w.:-]+", "Must be the name of a network interface, such as eth0.")] = (
        None
    )
    """Network interface of gloo and NCCL on every node, such as eth0. null: the interface with the node's address in
    Ray."""


@dataclass(kw_only=True)
class RayConfig:
    """The Ray cluster."""

    address: Annotated[
        str | None,
        Must(
            lambda v: v in ("auto", "local") or is_host_port(v),
            "Must be host:port of the cluster's head (port 1 to 65535), auto or local. Ray Client (ray://) is not "
            "supported: the driver must run on a node of the cluster.",
        ),
    ] = None
    """host:port of a running Ray cluster, or auto. local: start a cluster on this machine, on loopback, and stop the
    cluster at the end. null: RAY_ADDRESS if the variable is set, else local."""
    require_token: bool = True
    """Refuse a running cluster without token authentication. false: anybody who reaches the cluster's ports can run
    code there."""
    num_cpus: Annotated[int | None, PROCESSES] = None
    """CPUs of the cluster that is started. null: all CPUs of the machine. No effect with `address`."""
    object_store_mib: Annotated[int, between(75, 10**8, "Ray accepts no smaller object store")] = 512
    """Object store of the cluster that is started, MiB; for a submitted job that starts the cluster, of each node. No
    effect with `address`."""

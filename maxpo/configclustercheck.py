"""Checks of the sections `cluster`, `ray` and `launch`, in the form of `configcheck.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from maxpo.config import Config

CLUSTER_POSITIVE = """
    cluster.nodes cluster.gpus_per_node cluster.node_timeout_s ray.num_cpus
    launch.time_limit_min launch.stop_before_s launch.max_attempts launch.cpus_per_node launch.memory_gib
""".split()

CLUSTER_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("cluster.sleep_level", lambda v: v in (1, 2), "Must be 1 or 2."),
    ("ray.object_store_mib", lambda v: v >= 75, "Must be 75 or more: Ray accepts no smaller object store."),
    (
        "ray.address",
        lambda v: v in ("auto", "local") or re.fullmatch(r"[^\s:/]+:\d{1,5}", v) is not None,
        "Must be host:port of the cluster's head, auto or local. Ray Client (ray://) is not supported: the driver "
        "must run on a node of the cluster.",
    ),
)
"""Key, what must hold for its value, and what is said otherwise."""

CLUSTER_COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("cluster.placement", "learner.ranks", "rollout.workers", "rollout.tensor_parallel_size"),
        lambda c: (
            c.cluster.placement != "colocated" or c.learner.ranks == c.rollout.workers * c.rollout.tensor_parallel_size
        ),
        "Colocated, every GPU has a learner rank and a piece of an engine: learner.ranks must be rollout.workers x "
        "rollout.tensor_parallel_size.",
    ),
    (
        ("cluster.placement", "sync.backend"),
        lambda c: not (c.cluster.placement == "colocated" and c.sync.backend == "nccl"),
        "NCCL takes each GPU once, and colocated the learner and an engine share it: sync.backend must be ipc or auto.",
    ),
    (
        ("cluster.placement", "sync.backend"),
        lambda c: not (c.cluster.placement == "disaggregated" and c.sync.backend == "ipc"),
        "CUDA IPC is for processes that share a GPU: with placement disaggregated, sync.backend must be nccl or auto.",
    ),
    (
        ("cluster.nodes", "ray.address"),
        lambda c: c.cluster.nodes == 1 or c.ray.address != "local",
        "A cluster that the run starts itself has one node: with more, ray.address must be that of a running cluster.",
    ),
    (
        ("launch.stop_before_s", "checkpoint.stop_within_s"),
        lambda c: c.launch.stop_before_s > c.checkpoint.stop_within_s,
        "launch.stop_before_s must be more than checkpoint.stop_within_s, or the scheduler ends a run that saves.",
    ),
    (
        ("launch.time_limit_min", "launch.stop_before_s"),
        lambda c: 60 * c.launch.time_limit_min > c.launch.stop_before_s,
        "launch.time_limit_min must be longer than launch.stop_before_s, or there is no time to train.",
    ),
)
"""Keys that are read, what must hold for the config, and what is said otherwise."""

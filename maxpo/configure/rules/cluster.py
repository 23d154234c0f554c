"""Checks of the sections `cluster`, `ray` and `launch`, in the form of `configcheck.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from maxpo.config import Config
from maxpo.config.cluster import is_host_port
from maxpo.configure.rules.launch import DNS_NAME, is_line, is_variable

CLUSTER_POSITIVE = """
    learner.sequence_parallel cluster.nodes cluster.gpus_per_node cluster.node_timeout_s ray.num_cpus
    launch.time_limit_min launch.stop_before_s launch.max_attempts launch.cpus_per_node launch.memory_gib
    launch.k8s_shm_gib launch.k8s_user
""".split()


CLUSTER_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("cluster.sleep_level", lambda v: v in (1, 2), "Must be 1 or 2."),
    ("ray.object_store_mib", lambda v: v >= 75, "Must be 75 or more: Ray accepts no smaller object store."),
    (
        "ray.address",
        lambda v: v in ("auto", "local") or is_host_port(v),
        "Must be host:port of the cluster's head, auto or local. Ray Client (ray://) is not supported: the driver "
        "must run on a node of the cluster.",
    ),
    (
        "cluster.interface",
        lambda v: re.fullmatch(r"[\w.:-]+", v, re.ASCII) is not None,
        "Must be the name of a network interface, such as eth0.",
    ),
    ("launch.setup", lambda v: all(map(is_line, v)), "Each must be one line of shell, not empty."),
    (
        "launch.env",
        lambda v: all(is_variable(name, value) for name, value in v.items()),
        "Names must be letters, digits and _, and not begin with RAY_AUTH_ (the job sets those itself); values text on "
        "one line, or numbers. Quote true and false.",
    ),
    (
        "launch.log_dir",
        lambda v: re.fullmatch(r"[\w./+@=,][\w./+@=,-]*", v, re.ASCII) is not None,
        "Must be a folder, written with letters, digits and ._/+@=,- only: sbatch gives other characters a meaning.",
    ),
    (
        "launch.slurm_options",
        lambda v: all(is_line(o) and re.match(r"-\w|--\w", o) is not None for o in v),
        "Each must be one option of sbatch on one line, such as --partition=gpu.",
    ),
    (
        "launch.k8s_image",
        lambda v: re.fullmatch(r"[\w./:@-]+", v, re.ASCII) is not None,
        "Must be the name of a container image, such as registry.example.org/maxpo:1.0.",
    ),
    *(
        (key, lambda v: re.fullmatch(DNS_NAME, v) is not None and len(v) <= 253, f"Must be the name of a {what}.")
        for key, what in (("launch.k8s_claim", "PersistentVolumeClaim"), ("launch.k8s_secret", "Secret"))
    ),
    (
        "launch.k8s_mount",
        lambda v: re.fullmatch(r"(/[\w.+@=,-]+)+", v, re.ASCII) is not None and v not in ("/dev/shm", "/etc/maxpo"),
        "Must be an absolute path, written with letters, digits and ._/+@=,- only, and not a folder that the pods need "
        "themselves (/dev/shm, /etc/maxpo).",
    ),
)
"""Key, what must hold for its value, and what is said otherwise."""

CLUSTER_COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("learner.sequence_parallel", "learner.ranks"),
        lambda c: c.learner.ranks % c.learner.sequence_parallel == 0,
        "learner.ranks must be a multiple of learner.sequence_parallel: so many of them share a row.",
    ),
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

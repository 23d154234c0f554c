"""Checks of several settings of the sections `cluster`, `ray` and `launch` together."""

from __future__ import annotations

from maxpo.configure.rules import Combination

CLUSTER_COMBINATIONS: tuple[Combination, ...] = (
    (
        ("learner.sequence_parallel", "learner.ranks"),
        lambda c: c.learner.ranks % c.learner.sequence_parallel == 0,
        "learner.ranks must be a multiple of learner.sequence_parallel, the number of ranks that share a row.",
    ),
    (
        ("cluster.placement", "learner.ranks", "rollout.workers", "rollout.tensor_parallel_size"),
        lambda c: (
            c.cluster.placement != "colocated" or c.learner.ranks == c.rollout.workers * c.rollout.tensor_parallel_size
        ),
        "With placement colocated, every GPU has a learner rank and a shard of an engine: learner.ranks must be "
        "rollout.workers x rollout.tensor_parallel_size.",
    ),
    (
        ("cluster.placement", "sync.backend"),
        lambda c: not (c.cluster.placement == "colocated" and c.sync.backend == "nccl"),
        "NCCL needs a GPU of its own for each process, and with placement colocated learner and engine share a GPU: "
        "sync.backend must be ipc or auto.",
    ),
    (
        ("cluster.placement", "sync.backend"),
        lambda c: not (c.cluster.placement == "disaggregated" and c.sync.backend == "ipc"),
        "CUDA IPC is for processes that share a GPU: with placement disaggregated, sync.backend must be nccl or auto.",
    ),
    (
        ("cluster.nodes", "ray.address"),
        lambda c: c.cluster.nodes == 1 or c.ray.address != "local",
        "A cluster that the run starts itself has one node. For more nodes, set ray.address to a running cluster.",
    ),
    (
        ("launch.stop_before_s", "checkpoint.stop_within_s"),
        lambda c: c.launch.stop_before_s > c.checkpoint.stop_within_s,
        "launch.stop_before_s must be more than checkpoint.stop_within_s, or the scheduler ends a run while it saves.",
    ),
    (
        ("launch.time_limit_min", "launch.stop_before_s"),
        lambda c: 60 * c.launch.time_limit_min > c.launch.stop_before_s,
        "launch.time_limit_min must be longer than launch.stop_before_s, or there is no time to train.",
    ),
)

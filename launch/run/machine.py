"""Checks of a run against this machine: GPUs, cores, memory and network interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from launch.cluster.placement import Placement, gpus_described, place
from launch.cluster.ray_environment import cluster_address, require_one_node
from maxpo.config import Config
from maxpo.errors import InputError
from maxpo.runtime.network import require_interface

GIB = 2**30
ENGINE_GIB, RANK_GIB, PROCESS_GIB = 1.0, 0.4, 0.05
"""Memory of an engine, a learner rank, and a process of verifiers or environments, before it holds any data. The demo
has 1.2 GiB in an engine and 0.5 GiB in a rank. The numbers are lower, so that no run is refused that would fit."""
THREADS_EACH = 4
"""Largest number of threads of the learner for each core. More only wait for each other."""
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


def machine_problems(config: Config, parameters: int | None, *, with_learner: bool = True) -> Iterator[str]:
    """Yield what this machine lacks for the run. The nodes of a running cluster are checked when it is joined.

    Args:
        config: Checked settings.
        parameters: Number of parameters of the model. None: not known.
        with_learner: False for an evaluation.
    """
    try:
        if config.cluster.interface is not None:
            require_interface(config.cluster.interface)
    except InputError as error:
        yield str(error)
    here = cluster_address(config.ray) is None
    described, gpus = gpus_described(config.cluster), torch.cuda.device_count()
    try:
        if here:
            require_one_node(config)
            if (each := config.cluster.gpus_per_node or 0) > gpus:
                yield (
                    f"cluster.gpus_per_node = {each}, but torch sees {gpus} GPUs on this machine: run it where they "
                    "are, or give the address of a cluster that has them with ray.address"
                )
                return
        elif described is None:
            return
        placement = place(config, gpus=gpus if here or described is None else described, with_learner=with_learner)
    except InputError as error:
        yield str(error)
        return
    if here:
        yield from _too_many_processes(config, placement)
        yield from _too_little_memory(config, placement, parameters or 0)


def _too_many_processes(config: Config, placement: Placement) -> Iterator[str]:
    """Yield for each kind of process on CPU that are too many for the cores, which they need at the same time."""
    cores = len(os.sched_getaffinity(0))
    shards = config.rollout.workers * config.rollout.tensor_parallel_size
    if placement.rollout_device == "cpu" and shards > cores:
        yield (
            f"rollout.workers = {config.rollout.workers} x rollout.tensor_parallel_size = "
            f"{config.rollout.tensor_parallel_size} processes sample at once, but this machine has {cores} cores: "
            "lower one of them"
        )
    threads = placement.ranks * config.learner.cpu_threads
    if placement.learner_device == "cpu" and (placement.ranks > cores or threads > THREADS_EACH * cores):
        yield (
            f"learner.ranks = {placement.ranks} x learner.cpu_threads = {config.learner.cpu_threads} threads train at "
            f"once, but this machine has {cores} cores, for as many ranks and {THREADS_EACH * cores} threads: lower "
            "one of them"
        )


def _too_little_memory(config: Config, placement: Placement, parameters: int) -> Iterator[str]:
    """Yield if the processes would need more memory than the machine or its container has."""
    rollout, learner = config.rollout, config.learner
    engine, rank = ENGINE_GIB, RANK_GIB
    if placement.rollout_device == "cpu":
        engine += rollout.cpu_kv_cache_gib + WIDTH[rollout.dtype] * parameters / GIB
    if placement.learner_device == "cpu" and not learner.lora.rank:
        # Weights on each rank, and the optimizer's share: master weights, two moments and a sum of gradients.
        rank += (WIDTH[learner.dtype] + 16 / (learner.ranks if learner.zero_stage else 1)) * parameters / GIB
    environments = config.environment.workers * rollout.workers if config.environment.name else 0
    parts = {
        f"rollout.workers = {rollout.workers} engines": rollout.workers * engine,
        f"learner.ranks = {placement.ranks}": placement.ranks * rank,
        f"reward.workers = {config.reward.workers}": config.reward.workers * PROCESS_GIB,
        f"environment.workers = {config.environment.workers} per engine": environments * PROCESS_GIB,
        "ray.object_store_mib": config.ray.object_store_mib / 1024,
    }
    needed, there = sum(parts.values()), memory() / GIB
    if needed > there:
        words = ", ".join(f"{name}: {size:.1f}" for name, size in parts.items() if size)
        yield (
            f"the run needs at least {needed:.1f} GiB of memory ({words}), but this machine has {there:.1f} GiB: lower "
            "the largest of them"
        )


def memory() -> int:
    """Return the bytes of memory of this machine, or of its container."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return total

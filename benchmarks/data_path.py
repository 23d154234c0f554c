"""Cost of a group of completions on its way: worker, driver, learner.

    python benchmarks/data_path.py [--samples 16 --tokens 2048 --groups 200]

It prints, for one group: the bytes that are held for each token, text included; the CPU time of pickling, of reading,
and of making a packed row; and the CPU time of the driver (all threads) for a group that comes from a Ray actor and
goes to another one. Medians of several rounds.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.weight_sync import machine
from launch.cluster.ray_environment import secure_own_cluster
from maxpo.batches.packing import pack
from maxpo.batches.samples import valid_samples
from maxpo.types import Completion, Group, Prompt, ScoredGroup

IN_FLIGHT = 33
"""Calls of the actor at once."""


def made_up(samples: int, tokens: int) -> ScoredGroup:
    """Return a scored group with about four characters of text for each token."""
    draw = random.Random(0)
    completions = tuple(
        Completion(
            text="word" * tokens,
            token_ids=np.array([draw.randrange(150_000) for _ in range(tokens)], np.int32),
            logprobs=np.array([-draw.random() for _ in range(tokens)], np.float32),
            finish_reason="stop",
            versions=((0, 0),),
        )
        for _ in range(samples)
    )
    prompt = Prompt(prompt_id="p", text="word " * 64, token_ids=tuple(range(64)), reference="yes", source="none")
    return ScoredGroup(
        group=Group(prompt=prompt, completions=completions),
        rewards=(1.0,) * samples,
        successes=(True,) * samples,
        valid=(True,) * samples,
        outcomes=("ok",) * samples,
    )


def cpu_ms(do: Callable[[], object], rounds: int = 50) -> float:
    """Return the median CPU time of this thread for a call, in ms."""
    times: list[float] = []
    for _ in range(rounds):
        begun = time.thread_time()
        do()
        times.append(time.thread_time() - begun)
    return 1e3 * median(times)


def held_bytes(group: ScoredGroup) -> int:
    """Return the memory of a copy that came from another process."""
    wire = pickle.dumps(group, protocol=5)
    tracemalloc.start()
    copy = pickle.loads(wire)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert copy == group
    return size


def driver_ms(scored: ScoredGroup, groups: int, rounds: int = 3) -> float:
    """Return the CPU time of the driver for a group that it receives and hands over, in ms."""
    secure_own_cluster()
    import ray

    from launch.cluster.ray_cluster import cluster
    from maxpo.config import Config, RayConfig, RolloutConfig, RunConfig

    class Worker:
        def __init__(self, group: Group) -> None:
            self._group = group

        async def generate(self) -> Group:
            return self._group

    class Learner:
        def update(self, batch: list[Group]) -> int:
            return sum(int(c.token_ids[-1]) for group in batch for c in group.completions)

    config = Config(run=RunConfig(name="data_path", steps=1), rollout=RolloutConfig(max_new_tokens=1))
    config.ray = RayConfig(num_cpus=2, object_store_mib=2048)
    remote: Any = ray.remote
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder, cluster(config, Path(folder)):
        worker = remote(Worker).options(max_concurrency=100, num_cpus=0.01).remote(scored.group)
        learner = remote(Learner).options(num_cpus=0.01).remote()
        for _ in range(rounds + 1):
            begun, received = time.process_time(), list[Group]()
            flying = [worker.generate.remote().future() for _ in range(IN_FLIGHT)]
            while len(received) < groups:
                received.append(flying.pop(0).result())
                flying.append(worker.generate.remote().future())
            ray.get(learner.update.remote(ray.put(received)))
            times.append(1e3 * (time.process_time() - begun) / groups)
    return median(times[1:])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--groups", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scored = made_up(args.samples, args.tokens)
    wire = pickle.dumps(scored, protocol=5)
    advantages = torch.ones(1, args.samples)
    table = Table("a group", "value", "goal", title=f"{args.samples} x {args.tokens:,} tokens")
    table.add_row("held, bytes a token", f"{held_bytes(scored) / args.samples / args.tokens:.1f}", "13")
    table.add_row("pickled, KiB", f"{len(wire) / 1024:.0f}", "")
    table.add_row("pickle, CPU ms", f"{cpu_ms(lambda: pickle.dumps(scored, protocol=5)):.3f}", "")
    table.add_row("unpickle, CPU ms", f"{cpu_ms(lambda: pickle.loads(wire)):.3f}", "")
    packing = cpu_ms(lambda: pack(valid_samples([scored]), advantages, lambda sample: 1.0))
    table.add_row("samples and packed row, CPU ms", f"{packing:.3f}", "0.2")
    table.add_row("driver: received and handed over, CPU ms", f"{driver_ms(scored, args.groups):.2f}", "1.2")
    console = Console(width=110)
    console.print(table)
    console.print(machine())


if __name__ == "__main__":
    main()

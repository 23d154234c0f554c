"""Memory that the learner and engines on its host share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from maxpo.weights.buckets import ALIGNMENT
from maxpo.weights.shared_memory import SharedMemory, SharedView, is_shared

PAGE = 4096


def fill(memory: SharedMemory, sizes: list[int], value: int) -> None:
    memory.begin()
    for size in sizes:
        memory.take(size).fill_(value)


def test_buckets_arrive_one_after_the_other_in_every_sync() -> None:
    sizes = [ALIGNMENT, 3 * PAGE, 2 * ALIGNMENT]
    memory = SharedMemory(sum(sizes))
    views = [SharedView(memory.path) for _ in range(2)]
    for sync in (1, 2, 3):
        memory.begin()
        sent = [memory.take(size).copy_(torch.arange(size) % 50 + sync) for size in sizes]
        for view in views:
            view.begin()
            assert all(torch.equal(view.take(size), want) for size, want in zip(sizes, sent, strict=True))
            view.end()


def test_held_tensors_keep_their_values_in_later_syncs() -> None:
    """At any place in a page, and over more than one page."""
    sizes = [ALIGNMENT, PAGE, 5 * PAGE + ALIGNMENT, ALIGNMENT]
    memory = SharedMemory(sum(sizes))
    view, held = SharedView(memory.path), list[torch.Tensor]()
    for sync in (1, 2, 3):
        fill(memory, sizes, sync)
        view.begin()
        buckets = [view.take(size) for size in sizes]
        assert all((bucket == sync).all() for bucket in buckets)
        held += [buckets[0], buckets[2][PAGE:].view(torch.int32)]
        del buckets
        view.end()
    assert [t.view(torch.uint8).unique().tolist() for t in held] == [[1], [1], [2], [2], [3], [3]]


def test_an_engine_cannot_change_what_others_read() -> None:
    memory = SharedMemory(PAGE)
    fill(memory, [PAGE], 1)
    one, other = SharedView(memory.path), SharedView(memory.path)
    one.begin()
    other.begin()
    one.take(PAGE).fill_(9)
    assert (other.take(PAGE) == 1).all()
    memory.begin()
    assert (memory.take(PAGE) == 1).all()


def test_the_memory_is_found_by_its_token_alone() -> None:
    memory = SharedMemory(PAGE)
    assert is_shared(memory.path, memory.token)
    assert not is_shared(memory.path, b"x" * len(memory.token))
    path, token = memory.path, memory.token
    del memory
    assert not is_shared(path, token)


KILLED = """
import os, signal
from maxpo.weights.shared_memory import SharedMemory
memory = SharedMemory(1 << 20)
memory.take(1 << 20).fill_(1)
print(memory.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_killed_process() -> None:
    before = set(Path("/dev/shm").iterdir())
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    path = killed.stdout.strip()
    assert path.startswith("/proc/")
    assert not Path(path).exists()
    assert {p for p in Path("/dev/shm").iterdir() if "maxpo" in p.name} <= before

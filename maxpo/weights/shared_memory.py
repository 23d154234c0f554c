"""Memory that the learner and engines on its host share, without a name in any file system.

The memory ends with the last process that has it. The size of /dev/shm does not limit it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maxpo.weights.buckets import ALIGNMENT

TOKEN_BYTES = 16


class SharedMemory:
    """The learner's end: memory for all buckets of a sync, one after the other."""

    def __init__(self, size: int) -> None:
        """Create memory for buckets of `size` bytes in all. Pages are allocated when they are first written."""
        self._file = os.memfd_create("maxpo-weights")
        weakref.finalize(self, os.close, self._file)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        """Contents of the first bytes, by which another process knows the memory."""
        os.ftruncate(self._file, ALIGNMENT + size)
        os.pwrite(self._file, self.token, 0)
        mapped = mmap.mmap(self._file, ALIGNMENT + size)
        _ask_for_huge_pages(mapped)
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self.begin()

    @property
    def path(self) -> str:
        """Path of the memory for processes of the same user on this host, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def begin(self) -> None:
        """Begin a sync. No other process may read any more."""
        self._used = ALIGNMENT

    def take(self, nbytes: int) -> torch.Tensor:
        """Return the place of the next bucket, a flat uint8 tensor."""
        self._used += nbytes
        return self._bytes[self._used - nbytes : self._used]


class SharedView:
    """An engine's end. What the engine writes stays its own: the pages are copied then."""

    def __init__(self, path: str) -> None:
        """Open the memory at `SharedMemory.path`."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._bytes: Any = None
        self._lent: list[weakref.ref[Any]] = []

    def begin(self) -> None:
        """Begin a sync."""
        if self._bytes is None:
            mapped = mmap.mmap(self._file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            _ask_for_huge_pages(mapped)
            self._bytes = np.frombuffer(mapped, dtype=np.uint8)
        self._used = ALIGNMENT

    def take(self, nbytes: int) -> torch.Tensor:
        """Return the next bucket, which the learner must have filled, as a flat uint8 tensor."""
        lent = self._bytes[self._used : self._used + nbytes]
        self._used += nbytes
        self._lent.append(weakref.ref(lent))  # torch holds this array until the last view of the tensor is gone
        return torch.from_numpy(lent)  # pyright: ignore[reportUnknownMemberType]

    def end(self) -> None:
        """End a sync. Tensors that are still held keep their values, although the learner writes the memory again."""
        for reference in self._lent:
            held = reference()
            if held is None:
                continue
            for part in (held[:: mmap.PAGESIZE], held[-1:]):
                np.bitwise_or(part, 0, out=part)  # the first write to a page copies the page
            self._bytes = None  # the copied pages no longer change with the memory
        self._lent.clear()


def is_shared(path: str, token: bytes) -> bool:
    """Return True if this process finds the memory of that `token` at `path`. Other hosts and containers do not."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            return file.read(len(token)) == token
    except OSError:
        return False


def _ask_for_huge_pages(mapped: mmap.mmap) -> None:
    with suppress(OSError):  # kernels without them refuse
        mapped.madvise(mmap.MADV_HUGEPAGE)

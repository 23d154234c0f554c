"""Memory of the buckets that arrive."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from maxpo.weights.buckets import ALIGNMENT


class Buffers:
    """Memory that is used again once no tensor refers to it. Fresh memory costs more time than the copy into it.

    The receiver of a tensor may keep views of it: vLLM's layerwise reload does until a layer is complete.
    """

    def __init__(self, size: int, count: int) -> None:
        """Keep at most `count` buffers of at least `size` bytes. Nothing is allocated before `take`."""
        self._size, self._count = size, count
        self._kept: list[tuple[Any, weakref.ref[Any]]] = []

    def take(self, nbytes: int) -> torch.Tensor:
        """Return a flat uint8 tensor of `nbytes` with arbitrary contents, whose memory no other tensor shares.

        If all kept buffers are in use or too small, the memory is fresh.
        """
        free = [i for i, (memory, tensor) in enumerate(self._kept) if tensor() is None and len(memory) >= nbytes]
        if free:
            memory, _ = self._kept.pop(min(free, key=lambda i: len(self._kept[i][0])))
        else:
            # Free ones are too small.
            self._kept = [(memory, tensor) for memory, tensor in self._kept if tensor() is not None]
            memory = np.empty(max(nbytes, self._size) + ALIGNMENT, dtype=np.uint8)
            memory = memory[-memory.ctypes.data % ALIGNMENT :]
        lent = memory[:nbytes]
        if len(self._kept) < self._count:
            # torch holds this array until the last view of the tensor is gone.
            self._kept.append((memory, weakref.ref(lent)))
        return torch.from_numpy(lent)  # pyright: ignore[reportUnknownMemberType]

"""Buckets of tensors, which both ends of a weight transfer cut in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

ALIGNMENT = 64
"""Bytes of a cache line, a multiple of the width of every dtype."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, dtype and shape of one tensor on the wire, under its Hugging Face name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size on the wire."""
        return math.prod(self.shape) * self.dtype.itemsize


def cut_into_buckets(metas: Sequence[TensorMeta], bucket_bytes: int) -> Iterator[list[TensorMeta]]:
    """Yield buckets of consecutive tensors of at most `bucket_bytes`. A larger tensor is a bucket of its own."""
    bucket: list[TensorMeta] = []
    size = 0
    for meta in metas:
        if bucket and size + meta.nbytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(meta)
        size += meta.nbytes
    if bucket:
        yield bucket


def packed_size(metas: Sequence[TensorMeta]) -> int:
    """Return the number of bytes of a bucket with these tensors, see `unpack_bucket`."""
    return sum(map(_room, metas))


def unpack_bucket(buffer: torch.Tensor, metas: Sequence[TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and view of each tensor in the uint8 `buffer`, to be written or read.

    Each tensor starts at a multiple of `ALIGNMENT`, so that every dtype has a view there.
    """
    start = 0
    for meta in metas:
        yield meta.name, buffer[start : start + meta.nbytes].view(meta.dtype).view(meta.shape)
        start += _room(meta)


def _room(meta: TensorMeta) -> int:
    return -(-meta.nbytes // ALIGNMENT) * ALIGNMENT

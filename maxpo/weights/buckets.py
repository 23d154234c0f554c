"""Buckets of tensors, which both ends of a weight transfer cut in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


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


def unpack_bucket(buffer: torch.Tensor, metas: Sequence[TensorMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and view of each tensor in the uint8 `buffer`, which holds one after the other."""
    offset = 0
    for meta in metas:
        piece = buffer[offset : offset + meta.nbytes]
        offset += meta.nbytes
        # A view needs an aligned start. After a tensor of odd size only a copy has an aligned start.
        if piece.storage_offset() % meta.dtype.itemsize:
            piece = piece.clone()
        yield meta.name, piece.view(meta.dtype).view(meta.shape)

"""What both ends of a weight transfer must agree on: rendezvous, process group, cut into buckets."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # pyright: ignore


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
    """Consecutive runs of tensors of at most `bucket_bytes` together; a larger tensor stands alone."""
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
    """Views of the tensors that lie one after the other in the uint8 `buffer`."""
    offset = 0
    for meta in metas:
        piece = buffer[offset : offset + meta.nbytes]
        offset += meta.nbytes
        # A view needs an aligned start; after a tensor of odd size only a copy has one.
        if piece.storage_offset() % meta.dtype.itemsize:
            piece = piece.clone()
        yield meta.name, piece.view(meta.dtype).view(meta.shape)


def serve_store(host: str, timeout_s: float) -> tuple[TCPStore, int]:
    """A rendezvous store on a free port of the address `host` alone, and that port.

    The socket is bound before the store sees it: torch itself would listen on every interface.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """A client of the store that listens at `host:port`."""
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def gloo_group(store: Store, rank: int, world_size: int, timeout_s: float) -> Any:
    """A gloo group of its own, apart from the process's default group. Blocks until all ranks are there.

    Raises:
        RuntimeError: a rank is missing after `timeout_s` seconds; every later operation has the same limit.
    """
    return ProcessGroupGloo(PrefixStore("maxpo", store), rank, world_size, timedelta(seconds=timeout_s))

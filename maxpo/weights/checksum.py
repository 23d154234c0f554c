"""Checksums of a tensor's bytes: a fast one for the CPU, and one that is equal on every device."""

from __future__ import annotations

from typing import Any, cast

import torch
import xxhash
from torch import Tensor

CPU_CHUNK, GPU_CHUNK = 1 << 17, 1 << 24
"""Number of words summed at once, without effect on the sum. On a CPU their products take 1 MiB: they stay in the
cache, and the allocator reuses the memory, whereas larger blocks are fresh pages. A GPU wants few launches."""


def bytes_digest(tensor: Tensor) -> int:
    """Return the XXH3 hash, of 64 bits, of the bytes of a contiguous tensor on the CPU.

    Any difference of contents, order or size goes unnoticed once in 2^64. The GIL is free meanwhile.
    """
    data: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_64_intdigest(data)


def tensor_digest(tensor: Tensor) -> Tensor:
    """Return the 64-bit checksum of the bytes of `tensor`, as an int64 scalar on its device.

    The bytes are read as n words w_i and summed as `n + sum_i w_i * (2 i + 1)` modulo 2^64. Integer addition is
    exact in any order, so CPU and CUDA agree. The checksum detects mistakes of the transport, not attacks.

    Below 2^31 words it is sure to find one changed word, and two different words that have changed places, also such
    that differ in their sign alone: neither an odd factor nor `(w_i - w_j) * 2 (i - j)`, less than 2^64 in size, can
    vanish. Words of 8 bytes would not do, `2^63 * 2 (i - j)` vanishes. Other mistakes, such as shifted or swapped
    rows, a missing end, or another tensor of the same shape, go unnoticed by a coincidence of about 1 in 2^64.

    Args:
        tensor: any shape and dtype. Words have 4 bytes where the size in bytes allows it, else 2 or 1. Empty gives 0.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    width = next(width for width in (4, 2, 1) if data.numel() % width == 0)
    if data.storage_offset() % width:
        data = data.clone()  # torch views only aligned bytes as wider words
    words = data.view({4: torch.int32, 2: torch.int16, 1: torch.uint8}[width])
    total = torch.full((), words.numel(), dtype=torch.int64, device=tensor.device)
    chunk = CPU_CHUNK if tensor.device.type == "cpu" else GPU_CHUNK
    weight = 2 * torch.arange(min(chunk, words.numel()), device=tensor.device) + 1
    for part in cast("tuple[Tensor, ...]", words.split(chunk)):  # pyright: ignore
        total += (part * weight[: part.numel()]).sum()
        weight += 2 * chunk
    return total

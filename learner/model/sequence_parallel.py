"""Sequence parallelism: ranks that share a packed row, each with a part of its tokens.

DeepSpeed Ulysses (Jacobs et al. 2023, arXiv 2309.14509): every layer but attention sees tokens one by one, so each rank
needs only its own tokens. Around attention, two all-to-alls give each rank all tokens of a part of the heads, and back.
"""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from deepspeed.sequence.layer import _SeqAllToAll
from torch import Tensor

from maxpo.config import LearnerConfig

HEADS, TOKENS = 2, 1
"""Dimensions of [1, T, heads, D]."""


class SequenceGroup:
    """The consecutive ranks that share rows, this rank among them. They are on one node if the node has enough GPUs."""

    def __init__(self, size: int, timeout_s: float) -> None:
        """Make the groups. Collective over all ranks. `size` divides their number, `timeout_s` limits each exchange."""
        world, rank = dist.get_world_size(), dist.get_rank()
        limit = timedelta(seconds=timeout_s)
        groups = [dist.new_group(list(range(first, first + size)), limit) for first in range(0, world, size)]
        self.size, self.rank = size, rank % size
        self._group = groups[rank // size]

    @classmethod
    def of(cls, config: LearnerConfig) -> SequenceGroup | None:
        """Return this rank's group, or None if ranks share no rows. Collective over all ranks."""
        shared = config.sequence_parallel
        return cls(shared, config.step_timeout_s) if shared > 1 else None

    def span(self, tokens: int) -> tuple[int, int]:
        """Return begin and end of this rank's part of a row. `tokens` is a multiple of `size`."""
        each = tokens // self.size
        return self.rank * each, (self.rank + 1) * each

    def gather_tokens(self, x: Tensor) -> Tensor:
        """Exchange [1, heads, T / size, D] for [1, heads / size, T, D]."""
        return _SeqAllToAll.apply(self._group, x.transpose(1, 2), HEADS, TOKENS, 0).transpose(1, 2)  # pyright: ignore

    def gather_heads(self, x: Tensor) -> Tensor:
        """Exchange [1, T, heads / size, D] for [1, T / size, heads, D]."""
        return _SeqAllToAll.apply(self._group, x, TOKENS, HEADS, 0)  # pyright: ignore

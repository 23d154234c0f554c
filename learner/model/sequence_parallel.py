"""Sequence parallelism: ranks that share a packed row, each with a part of its tokens.

DeepSpeed Ulysses (Jacobs et al. 2023, arXiv 2309.14509): every layer but attention sees tokens one by one, so each rank
needs only its own; around attention two all-to-alls give each rank all tokens of a part of the heads, and back.
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
    """The ranks that this one shares its rows with: `size` ranks in a row, which are on one node where it has room."""

    def __init__(self, size: int, timeout_s: float) -> None:
        """Collective over all ranks. `size` divides their number; `timeout_s` is the limit of an exchange."""
        world, rank = dist.get_world_size(), dist.get_rank()
        limit = timedelta(seconds=timeout_s)
        groups = [dist.new_group(list(range(first, first + size)), limit) for first in range(0, world, size)]
        self.size, self.rank = size, rank % size
        self._group = groups[rank // size]
        self.attended = 0
        """Attention layers since it was set to 0."""

    @classmethod
    def of(cls, config: LearnerConfig) -> SequenceGroup | None:
        """Return this rank's group, or None if ranks share no rows. Collective over all ranks."""
        shared = config.sequence_parallel
        return cls(shared, config.step_timeout_s) if shared > 1 else None

    def span(self, tokens: int) -> tuple[int, int]:
        """Begin and end of this rank's part of a row; `tokens` is a multiple of `size`."""
        each = tokens // self.size
        return self.rank * each, (self.rank + 1) * each

    def gather_tokens(self, x: Tensor) -> Tensor:
        """[1, heads, T / size, D] -> [1, heads / size, T, D]."""
        return _SeqAllToAll.apply(self._group, x.transpose(1, 2), HEADS, TOKENS, 0).transpose(1, 2)  # pyright: ignore

    def gather_heads(self, x: Tensor) -> Tensor:
        """[1, T, heads / size, D] -> [1, T / size, heads, D]."""
        return _SeqAllToAll.apply(self._group, x, TOKENS, HEADS, 0)  # pyright: ignore

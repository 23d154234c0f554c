"""Attention over rows that hold several sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.model.sequence_parallel import SequenceGroup

PACKED_ATTENTION = "maxpo_packed"


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the sequences of a packed row lie, for attention.

    Sequences whose lengths share a power of two are attended to together, padded to the longest of them, so
    that padding at most doubles the work whatever the mixture of lengths.
    """

    blocks: tuple[Tensor, ...]
    """Index tensors [S, L] into the row; past the end of a sequence its last token repeats."""
    inverse: Tensor
    """[T] index of each token of the row in the flattened blocks."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> RowLayout:
        """The layout of a row of sequences of these lengths."""
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        sizes = torch.tensor(lengths)
        blocks: list[Tensor] = []
        inverse = torch.empty(int(sizes.sum()), dtype=torch.long)
        offset = 0
        classes = torch.tensor([int(n - 1).bit_length() for n in lengths])
        for size_class in classes.unique().tolist():
            members = (classes == size_class).nonzero().squeeze(1)
            steps = torch.arange(int(sizes[members].max()))
            block = starts[members, None] + torch.minimum(steps, sizes[members, None] - 1)
            real = steps < sizes[members, None]
            inverse[block[real]] = offset + real.flatten().nonzero().squeeze(1)
            offset += block.numel()
            blocks.append(block.to(device))
        return cls(tuple(blocks), inverse.to(device))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row: RowLayout | None = None,
    sequence: SequenceGroup | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row; nothing leaks from one sequence to another.

    Same result as one sequence at a time, without a [T, T] mask and without a kernel of its own.

    Args:
        module: the attention layer.
        query: [1, heads, T, D]; `key` and `value` [1, kv_heads, T, D].
        key: see query.
        value: see query.
        attention_mask: must be None.
        scaling: factor of the scores before the softmax.
        dropout: attention dropout.
        row: where the sequences lie.
        sequence: the ranks that share the row; T is then this rank's part of it.
        **kwargs: what else the model hands down; sliding windows, soft caps and attention sinks are refused.
    """
    unsupported = [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    if row is None or attention_mask is not None or unsupported:
        raise ValueError(
            f"packed attention is plain causal attention of a laid-out row; the model asks for {unsupported}"
        )
    if sequence is not None:
        sequence.attended += 1
        query, key, value = (sequence.gather_tokens(x) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    pieces: list[Tensor] = []
    for block in row.blocks:
        out = F.scaled_dot_product_attention(
            *(x[block].transpose(1, 2) for x in (q, k, v)),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    out = torch.cat(pieces)[row.inverse][None]
    return out if sequence is None else sequence.gather_heads(out), None

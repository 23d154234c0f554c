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
    """Positions of the sequences in a packed row, for attention.

    Sequences whose lengths round up to the same power of two are one block, padded to the longest of them. So padding
    at most doubles the work, whatever the mixture of lengths.
    """

    blocks: tuple[Tensor, ...]
    """Index tensors [S, L] into the row. Past the end of a sequence its last token repeats."""
    inverse: Tensor
    """[T] index of each token of the row in the flattened and joined blocks."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> RowLayout:
        """Return the layout of a row of sequences of these lengths."""
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        sizes = torch.tensor(lengths)
        blocks: list[Tensor] = []
        inverse = torch.empty(int(sizes.sum()), dtype=torch.long)
        offset = 0
        # Computed on the host, so that no step waits for the device. Only the finished index tensors are moved.
        classes = torch.tensor([int(n - 1).bit_length() for n in lengths])
        for size_class in classes.unique().tolist():
            members = (classes == size_class).nonzero().squeeze(1)
            steps = torch.arange(int(sizes[members].max()))
            # Padding may repeat any token: causal attention keeps it from the real tokens, and `inverse` leaves it out.
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
    """Compute causal attention within each sequence of a packed row. No sequence sees another.

    The result equals that of one sequence at a time, without a [T, T] mask and without a special kernel.

    Args:
        module: the attention layer.
        query: [1, heads, T, D]; `key` and `value` [1, kv_heads, T, D].
        key: see query.
        value: see query.
        attention_mask: must be None.
        scaling: factor of the scores before the softmax.
        dropout: attention dropout.
        row: positions of the sequences.
        sequence: the ranks that share the row. T is then the length of this rank's part.
        **kwargs: further arguments of the model. Sliding windows, soft caps and attention sinks are refused.

    Raises:
        ValueError: the model asks for something else than plain causal attention, or the row has no layout.
    """
    unsupported = [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    if row is None or attention_mask is not None or unsupported:
        raise ValueError(
            f"packed attention is plain causal attention of a laid-out row; the model asks for {unsupported}"
        )
    if sequence is not None:
        # `Policy.forward` compares the count with the layers: a layer that mixes tokens otherwise would go unnoticed.
        sequence.attended += 1
        query, key, value = (sequence.gather_tokens(x) for x in (query, key, value))
    # In grouped-query attention, several query heads share one head of keys and values.
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

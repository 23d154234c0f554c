"""Attention over rows that hold several sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import causal_mask_function

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.model.sequence_parallel import SequenceGroup

PACKED_ATTENTION = "maxpo_packed"
QUERIES = 1024
"""Number of queries of a sequence that are computed at once where a mask or scores must be in memory."""
MASKED = 1 << 24
"""Most elements of the mask of a block, so that a mask never needs much memory. In a larger block, the attention of
shared prompts is computed for each sequence."""


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences that are computed in one call of the attention, padded to the longest. Indices point into the row."""

    keys: Tensor
    """[S, L] index of each token. Past the end of a sequence its last token repeats."""
    queries: Tensor | None = None
    """[S, Q] index of each token whose attention is computed. None: `keys`."""
    positions: Tensor | None = None
    """[S, Q] position of each query in its sequence. None: 0 to L - 1."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Positions of the sequences in a packed row, for attention.

    Sequences whose lengths round up to the same power of two are one block, padded to the longest of them. So padding
    at most doubles the work, whatever the mixture of lengths.

    A row may hold the prompt of several sequences once. No token of it sees what follows, so its states are the same
    for all of them.
    """

    blocks: tuple[Block, ...]
    inverse: Tensor
    """[U] index of each token of the row in the flattened and joined queries of the blocks."""
    places: Tensor | None = None
    """[T] index in the row of each token of all sequences, one sequence after the other. None: T = U, in this order."""
    kept: Tensor | None = None
    """[U] index of each token of the row among the tokens of all sequences. None: T = U."""

    attended: list[nn.Module] = field(default_factory=list[nn.Module])
    """Layers that have computed attention over this row."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        *,
        shared: Sequence[tuple[int, int]] = (),
        one_block: bool = False,
    ) -> RowLayout:
        """Return the layout of a row of sequences of these lengths.

        Args:
            lengths: [B] numbers of tokens.
            device: device of the row.
            shared: [B] prompts that are in the row once, see `TrainBatch.shared`. Empty: none.
            one_block: True to pad all sequences to the longest.
        """
        # Computed on the host, so that no step waits for the device. Only the finished index tensors are moved.
        sizes = torch.tensor(lengths)
        owner, prompt = torch.tensor(shared).T if shared else (torch.arange(len(sizes)), torch.zeros_like(sizes))
        ends = (sizes - prompt).cumsum(0)
        # The place of a token is its position plus the start of its sequence, or of the sequence that has its prompt.
        starts, prompt_starts = ends - sizes, (ends - sizes + prompt)[owner]

        def place(sequences: Tensor, position: Tensor) -> Tensor:
            before = position < prompt[sequences]
            return position + torch.where(before, prompt_starts[sequences], starts[sequences])

        blocks: list[Block] = []
        inverse = torch.empty(int(ends[-1]), dtype=torch.long)
        offset = 0
        for members in _classes(sizes, prompt, one_block):
            rows = members[:, None]
            # Padding may repeat any token: causal attention keeps it from the real tokens, and `inverse` leaves it out.
            keys = torch.minimum(torch.arange(int(sizes[members].max())), sizes[rows] - 1)
            own = torch.arange(int((sizes - prompt)[members].max()))
            few = device.type == "cpu" and len(own) < keys.shape[1] and keys.numel() * len(own) <= MASKED
            steps = own + prompt[rows] if few else torch.arange(keys.shape[1])
            positions = torch.minimum(steps, sizes[rows] - 1) if few else keys
            real = (steps < sizes[rows]) & (steps >= prompt[rows])
            queries = place(rows, positions)
            inverse[queries[real]] = offset + real.flatten().nonzero().squeeze(1)
            offset += queries.numel()
            block = [place(rows, keys), queries, positions] if few else [queries]
            blocks.append(Block(*(part.to(device) for part in block)))
        if not prompt.any():
            return cls(tuple(blocks), inverse.to(device))
        position = torch.cat([torch.arange(n) for n in lengths])
        each = torch.arange(len(sizes)).repeat_interleave(sizes)
        kept = (position >= prompt[each]).nonzero().squeeze(1)
        return cls(tuple(blocks), inverse.to(device), place(each, position).to(device), kept.to(device))


def _classes(sizes: Tensor, prompt: Tensor, one_block: bool) -> Iterator[Tensor]:
    """Yield the sequences of each block: of similar length, and with or without a prompt that another one has."""
    classes = torch.tensor([0 if one_block else 2 * int(n - 1).bit_length() for n in sizes.tolist()])
    classes += prompt > 0
    for each in classes.unique():
        yield (classes == each).nonzero().squeeze(1)


class PackedMask:
    """A row, and the keys that each query of a sequence may see. Goes through the layers in place of a mask tensor.

    Whatever a model's mask is made of (causality, a sliding window, chunks), transformers describes it by a function of
    positions, here of those in the sequence. So no kind of mask needs a case of its own.
    """

    def __init__(
        self, row: RowLayout, visible: Callable[..., Any] = causal_mask_function, sequence: SequenceGroup | None = None
    ) -> None:
        """Keep the parts.

        Args:
            row: positions of the sequences.
            visible: function of (batch, head, query, key), of integer tensors that broadcast. True: may be seen.
            sequence: ranks that share the row.
        """
        self.row, self.sequence = row, sequence
        self._visible, self._device = visible, row.inverse.device
        self._zero = torch.zeros((), dtype=torch.long, device=self._device)
        self._pieces: dict[int, list[tuple[slice, slice, Tensor | None]]] = {}

    def pieces(self, number: int) -> list[tuple[slice, slice, Tensor | None]]:
        """Return pieces of the queries of a block: the queries, keys that hold all visible ones, and the mask.

        The mask is [queries, keys] or [S, 1, queries, keys], True where visible. None: the piece is plain causal
        attention.
        """
        if number not in self._pieces:
            block = self.row.blocks[number]
            length = block.keys.shape[1]
            if block.positions is None:
                self._pieces[number] = list(self._cut(length))
            else:
                keys = torch.arange(length, device=self._device)
                mask = self._visible(self._zero, self._zero, block.positions[:, None, :, None], keys)
                mask = mask.expand(-1, 1, block.positions.shape[1], length)
                self._pieces[number] = [(slice(None), slice(None), mask)]
        return self._pieces[number]

    def _cut(self, length: int) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yield the pieces of sequences of this length whose queries are all tokens."""
        whole = slice(0, length)
        if self._visible is causal_mask_function:
            yield whole, whole, None
            return
        keys = torch.arange(length, device=self._device)
        pieces: list[tuple[slice, slice, Tensor | None]] = []
        causal = True
        for start in range(0, length, QUERIES):
            queries = slice(start, min(start + QUERIES, length))
            mask = self._visible(self._zero, self._zero, keys[queries, None], keys[None, : queries.stop])
            mask = mask.expand(queries.stop - start, queries.stop)
            causal = causal and torch.equal(mask, keys[queries, None] >= keys[None, : queries.stop])
            first = int(mask.any(0).nonzero()[0])
            pieces.append((queries, slice(first, queries.stop), mask[:, first:]))
        yield from [(whole, whole, None)] if causal else pieces


_current: ContextVar[tuple[RowLayout, SequenceGroup | None]] = ContextVar("row")


@contextmanager
def laid_out(row: RowLayout, sequence: SequenceGroup | None) -> Iterator[None]:
    """Make this the row of the forward pass in the block, and these the ranks that share it."""
    token = _current.set((row, sequence))
    try:
        yield
    finally:
        _current.reset(token)


def packed_mask(mask_function: Callable[..., Any], **kwargs: object) -> PackedMask:
    """Return the mask of a forward pass. transformers calls this function for each kind of mask of a model.

    The mask carries the row, since not every model hands further arguments on to its attention.

    Raises:
        LookupError: the call is not within `laid_out`.
    """
    row, sequence = _current.get()
    return PackedMask(row, mask_function, sequence)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute causal attention within each sequence of a packed row. No sequence sees another.

    The result equals that of one sequence at a time, without a [T, T] mask and without a special kernel.

    Args:
        module: the attention layer.
        query: [1, heads, T, D]; `key` and `value` [1, kv_heads, T, D]. T is the length of this rank's part of the row.
        key: see query.
        value: see query.
        attention_mask: the row and the visible keys.
        scaling: factor of the scores before the softmax. None: 1 / sqrt(D).
        dropout: attention dropout.
        softcap: bound c of the scores, which become c tanh(score / c).
        s_aux: [heads] attention sinks: scores of a further key without a value.
        **kwargs: further arguments of the model. A sliding window is part of the mask.

    Raises:
        ValueError: the model asks for something else than causal attention under a mask.
    """
    unsupported = [name for name in ("position_bias", "cache") if kwargs.get(name) is not None]
    if kwargs.get("is_causal") is False:
        unsupported.append("is_causal=False")
    if not isinstance(attention_mask, PackedMask):
        unsupported.append("a mask of its own")
    if unsupported:
        asked = ", ".join(unsupported)
        raise ValueError(f"packed attention is causal attention of a laid-out row; the model asks for {asked}")
    assert attention_mask is not None
    row, sequence = attention_mask.row, attention_mask.sequence
    row.attended.append(module)
    if sequence is not None:
        query, key, value = (sequence.gather_tokens(x) for x in (query, key, value))
        s_aux = None if s_aux is None else s_aux.chunk(sequence.size)[sequence.rank]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    outputs: list[Tensor] = []
    for number, block in enumerate(row.blocks):
        queries = q[block.keys if block.queries is None else block.queries].transpose(1, 2)
        keys, values = (x[block.keys].transpose(1, 2) for x in (k, v))
        parts = [
            _attend(queries[:, :, here], keys[:, :, seen], values[:, :, seen], mask, scaling, dropout, softcap, s_aux)
            for here, seen, mask in attention_mask.pieces(number)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    out = torch.cat(outputs)[row.inverse][None]
    return out if sequence is None else sequence.gather_heads(out), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention [S, heads, L, D] of the queries over the keys, which end with the last query's.

    Args:
        query: [S, heads, L, D]; `key` and `value` [S, kv_heads, K, D].
        key: see query.
        value: see query.
        mask: [L, K] or [S, 1, L, K], True where visible. None: L = K, plain causal attention.
        scaling: see `packed_attention`.
        dropout: see `packed_attention`.
        softcap: see `packed_attention`.
        sinks: see `packed_attention`.
    """
    # In grouped-query attention, several query heads share one head of keys and values.
    groups = query.shape[1] // key.shape[1]
    if softcap is None and sinks is None:
        if query.device.type == "cpu" and query.dtype != torch.float32:
            # Torch's kernel for CPU takes half the time in float32, conversions included.
            wide = _attend(query.float(), key.float(), value.float(), mask, scaling, dropout, softcap, sinks)
            return wide.to(query.dtype)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sink = sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return F.dropout(weights.to(value.dtype), dropout) @ value

"""The policy as the learner sees it: packed rows in, token log-probabilities and entropy out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import logging

from learner.model.head import Head
from learner.model.packed_attention import PACKED_ATTENTION, RowLayout, laid_out, packed_attention, packed_mask
from maxpo.batches.packing import TrainBatch
from maxpo.losses.logprobs import token_logprobs

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.model.sequence_parallel import SequenceGroup

Layout = Literal["packed", "sdpa", "eager"]
"""How sequences go through the layers. packed: one after the other in a row, with `packed_attention`. The others: one
sequence a row, padded to the longest, with this attention of transformers."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""All layouts, in the order in which the self-test tries them."""

AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, packed_mask)


class Policy(nn.Module):
    """A language model whose output is log-probabilities instead of logits."""

    def __init__(self, lm: PreTrainedModel, sequence: SequenceGroup | None = None, layout: Layout = "packed") -> None:
        """Wrap `lm`, whose parameters keep their names under the prefix `lm.`.

        Args:
            lm: the language model.
            sequence: ranks that share rows.
            layout: how sequences go through the layers.

        Raises:
            ValueError: the model has no output embedding.
        """
        super().__init__()
        self.lm = lm
        self._sequence = sequence
        self._head = Head(lm)
        self.layout: Layout = layout
        use_attention(lm, PACKED_ATTENTION if layout == "packed" else layout)

    def forward(
        self, batch: TrainBatch, *, temperature: float, chunk: int, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return [T] log-probabilities and [T] entropies in nats, 0 for tokens outside the loss mask.

        If ranks share the row, the mask is True only for tokens that this rank predicts, see `packing.own_part`.

        Raises:
            ValueError: the row is shared, and a layer of the model is not attention.
        """
        tokens = batch.token_ids.shape[0]
        start, end = (0, tokens) if self._sequence is None else self._sequence.span(tokens)
        if self.layout == "packed":
            hidden, places = self._packed(batch, start, end)
        else:
            hidden, places = self._padded(batch), None
        weight, bias = self._head.weight()
        judged = slice(start, min(end + 1, tokens))  # the last state predicts the first token of the next rank's part
        logprobs, entropy = token_logprobs(
            hidden,
            lambda states: self._head(states, weight, bias),
            batch.token_ids[judged],
            batch.loss_mask[judged],
            places=places,
            temperature=temperature,
            chunk=chunk,
            entropy_grad=entropy_grad,
        )
        around = (start, tokens - judged.stop)
        return F.pad(logprobs, around), F.pad(entropy, around)

    def _packed(self, batch: TrainBatch, start: int, end: int) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states of a part of the row, and the place of each token among them.

        A prompt of several sequences goes through the layers once. If ranks share the row, it does not: a rank's part
        is cut from the whole row.
        """
        row = RowLayout.of(batch.lengths, batch.token_ids.device, shared=batch.shared if self._sequence is None else ())
        tokens, positions = batch.token_ids[None, start:end], batch.position_ids[None, start:end]
        if row.kept is not None:
            tokens, positions = tokens[:, row.kept], positions[:, row.kept]
        with laid_out(row, self._sequence):
            hidden = self._head.layers(
                input_ids=tokens,
                # All tokens are real. Without it, transformers would look for sequences by itself.
                attention_mask=tokens.new_ones(tokens.shape),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state[0]
        layers: int = self.lm.config.num_hidden_layers
        attended = len(set(row.attended))  # a layer may call its attention several times
        if self._sequence is not None and attended < layers:
            raise ValueError(
                f"learner.sequence_parallel = {self._sequence.size}: {attended} of the model's {layers} "
                "layers are attention; all must be: set it to 1"
            )
        return hidden, row.places

    def _padded(self, batch: TrainBatch) -> Tensor:
        """Return the last hidden states [T, H], with one sequence a row in a single call of the layers.

        A single call, because ZeRO-3 needs the same number of calls on all ranks. A sequence is padded at its end,
        where no causal layer looks.
        """
        row = RowLayout.of(batch.lengths, batch.token_ids.device, one_block=True)
        (block,) = row.blocks
        hidden = self._head.layers(input_ids=batch.token_ids[block.keys], use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[row.inverse]


def use_attention(lm: PreTrainedModel, implementation: str) -> None:
    """Set the attention of all layers. A model with attention code of its own keeps that code, see `self_test`."""
    if lm.config._attn_implementation == implementation:
        return
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers warns of the models that keep their own
    try:
        lm.set_attn_implementation(implementation)
    finally:
        logging.set_verbosity(verbosity)

"""The policy as the learner sees it: packed rows in, token log-probabilities and entropy out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from learner.model.packed_attention import PACKED_ATTENTION, RowLayout, packed_attention
from maxpo.batches.packing import TrainBatch
from maxpo.losses.logprobs import token_logprobs

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.model.sequence_parallel import SequenceGroup


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


class Policy(nn.Module):
    """A language model whose output is log-probabilities instead of logits."""

    def __init__(self, lm: PreTrainedModel, sequence: SequenceGroup | None = None) -> None:
        """Wrap `lm`, whose parameters keep their names under the prefix `lm.`. `sequence`: ranks that share rows."""
        super().__init__()
        self.lm = lm
        self._sequence = sequence

    def forward(
        self, batch: TrainBatch, *, temperature: float, chunk: int, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return [T] log-probabilities and [T] entropies in nats, 0 for tokens outside the loss mask.

        If ranks share the row, the mask is True only for tokens that this rank predicts, see `packing.own_part`.

        Raises:
            ValueError: the row is shared, and a layer of the model is not attention.
        """
        lm = self.lm
        tokens, sequence = batch.token_ids.shape[0], self._sequence
        start, end = (0, tokens) if sequence is None else sequence.span(tokens)
        if sequence is not None:
            sequence.attended = 0
        hidden = lm.base_model(
            input_ids=batch.token_ids[None, start:end],
            position_ids=batch.position_ids[None, start:end],
            use_cache=False,
            row=RowLayout.of(batch.lengths, batch.token_ids.device),
            sequence=sequence,
        ).last_hidden_state[0]
        if sequence is not None and sequence.attended != lm.config.num_hidden_layers:
            raise ValueError(
                f"learner.sequence_parallel = {sequence.size}: {sequence.attended} of the model's "
                f"{lm.config.num_hidden_layers} layers are attention; all must be: set it to 1"
            )
        # The head is a function of its weight, not a module: under ZeRO-3 the call of a module gathers its parameters
        # on all ranks together, but ranks may have different numbers of chunks.
        head = lm.get_output_embeddings()
        assert head is not None
        judged = slice(start, min(end + 1, tokens))  # the last state predicts the first token of the next rank's part
        logprobs, entropy = token_logprobs(
            hidden,
            partial(F.linear, weight=head.weight, bias=head.bias),
            batch.token_ids[judged],
            batch.loss_mask[judged],
            temperature=temperature,
            chunk=chunk,
            entropy_grad=entropy_grad,
        )
        around = (start, tokens - judged.stop)
        return F.pad(logprobs, around), F.pad(entropy, around)

"""The policy as the learner sees it: packed rows in, token log-probabilities and entropy out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from maxpo.batches.packing import TrainBatch
from maxpo.losses.logprobs import token_logprobs

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.ulysses import SequenceGroup

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
    **kwargs: Any,
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


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def load_language_model(path: str, dtype: torch.dtype, *, trust_remote_code: bool) -> nn.Module:
    """A Hugging Face causal language model with packed attention.

    Raises:
        ValueError: a model whose logits are more than its head applied to its hidden states.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=PACKED_ATTENTION,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
    )
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise ValueError(f"{path}: config.json sets {key}; models that rescale their logits are not supported")
    return model


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute each decoder layer in the backward pass.

    Layers do so only in training mode, which the model is not in: dropout must stay off, so that the learner's
    probabilities are the sampler's. Hence the flag of the layers themselves, and of nothing inside them.
    """
    model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


class Policy(nn.Module):
    """A language model that answers with log-probabilities instead of logits."""

    def __init__(self, lm: nn.Module, sequence: SequenceGroup | None = None) -> None:
        """Wrap `lm`; its parameters keep their names under the prefix `lm.`. `sequence`: ranks that share rows."""
        super().__init__()
        self.lm = lm
        self._sequence = sequence

    def forward(
        self, batch: TrainBatch, *, temperature: float, chunk: int, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """[T] log-probabilities and entropies in nats, 0 where the loss mask is False.

        Where ranks share the row, the mask is True for tokens that this rank predicts only, see `batching.own_part`.

        Raises:
            ValueError: the row is shared, and a layer of the model mixes tokens otherwise than by attention.
        """
        lm: Any = self.lm
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
        # The head as a function of its weight, not as a module: under ZeRO-3 a module call gathers its parameters
        # together with all ranks, and ranks need not have equally many chunks.
        head = lm.get_output_embeddings()
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


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under their Hugging Face names, without the policy's prefix; a tied one appears once."""
    return {name.removeprefix("lm."): parameter for name, parameter in model.named_parameters()}

"""The policy as the learner sees it: packed rows in, token log-probabilities and entropy out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from maxpo.batching import TrainBatch
from maxpo.logprobs import token_logprobs

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
        **kwargs: what else the model hands down; sliding windows, soft caps and attention sinks are refused.
    """
    unsupported = [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    if row is None or attention_mask is not None or unsupported:
        raise ValueError(
            f"packed attention is plain causal attention of a laid-out row; the model asks for {unsupported}"
        )
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
    return torch.cat(pieces)[row.inverse][None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def load_language_model(path: str, dtype: torch.dtype, *, trust_remote_code: bool) -> nn.Module:
    """A Hugging Face causal language model with packed attention.

    Raises:
        ValueError: a model whose logits are more than its head applied to its hidden states.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=PACKED_ATTENTION, trust_remote_code=trust_remote_code
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

    def __init__(self, lm: nn.Module) -> None:
        """Wrap `lm`; its parameters keep their names under the prefix `lm.`."""
        super().__init__()
        self.lm = lm

    def forward(
        self, batch: TrainBatch, *, temperature: float, chunk: int, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """[T] log-probabilities and entropies in nats, 0 where the loss mask is False."""
        lm: Any = self.lm
        hidden = lm.base_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            row=RowLayout.of(batch.lengths, batch.token_ids.device),
        ).last_hidden_state[0]
        # The head as a function of its weight, not as a module: under ZeRO-3 a module call gathers its parameters
        # together with all ranks, and ranks need not have equally many chunks.
        head = lm.get_output_embeddings()
        return token_logprobs(
            hidden,
            partial(F.linear, weight=head.weight, bias=head.bias),
            batch.token_ids,
            batch.loss_mask,
            temperature=temperature,
            chunk=chunk,
            entropy_grad=entropy_grad,
        )


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under their Hugging Face names, without the policy's prefix; a tied one appears once."""
    return {name.removeprefix("lm."): parameter for name, parameter in model.named_parameters()}

"""Language models from folders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.model.packed_attention import PACKED_ATTENTION


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

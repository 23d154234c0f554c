"""Language models from folders, and the policy that a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.model.lora import add_adapter, base_digest
from learner.model.packed_attention import PACKED_ATTENTION
from learner.model.policy import Policy
from maxpo.config import Config

if TYPE_CHECKING:  # it imports deepspeed, which must come after the environment is set
    from learner.model.sequence_parallel import SequenceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A policy before its first step, on the host."""

    policy: Policy
    parameters: int
    """Number of parameters of the model, without an adapter."""
    base: str | None
    """Checksum of the weights under an adapter. None: there is no adapter."""


def load_policy(config: Config, sequence: SequenceGroup | None) -> LoadedPolicy:
    """Load the model that the run trains, with the adapter if one is set.

    Args:
        config: a checked configuration.
        sequence: ranks that share packed rows with this one. None: this rank has its rows for itself.
    """
    learner = config.learner
    lm = _load(config)
    if learner.gradient_checkpointing:
        enable_gradient_checkpointing(lm)
    parameters, base = sum(p.numel() for p in lm.parameters()), None
    if learner.lora.rank:
        base = base_digest(lm)
        add_adapter(lm, learner.lora, seed=config.run.seed)
    return LoadedPolicy(policy=Policy(lm, sequence), parameters=parameters, base=base)


def load_frozen_policy(config: Config, sequence: SequenceGroup | None) -> Policy:
    """Load the model that the run starts from, without an adapter and without gradients."""
    policy = Policy(_load(config), sequence).eval()
    return policy.requires_grad_(False)


def load_language_model(path: str, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    """Load a Hugging Face causal language model with packed attention.

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


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute each decoder layer in the backward pass.

    Layers do so only in training mode, which the model is not in: dropout must stay off, so that the learner's
    probabilities are the sampler's. Hence only the flag of the layers themselves is set, and no flag inside them.
    """
    model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def _load(config: Config) -> PreTrainedModel:
    dtype: torch.dtype = getattr(torch, config.learner.dtype)
    return load_language_model(config.model.path, dtype, trust_remote_code=config.model.trust_remote_code)

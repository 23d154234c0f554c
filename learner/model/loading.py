"""Language models from folders, and the policy that a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from learner.model.lora import add_adapter, base_digest
from learner.model.policy import Layout, Policy
from learner.model.rotary import fix_rotary_length
from learner.model.self_test import LARGE, SelfTestReport, layout_of, small_copy
from maxpo.config import Config
from maxpo.errors import InputError

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


def load_policy(config: Config, sequence: SequenceGroup | None, layout: Layout) -> LoadedPolicy:
    """Load the model that the run trains, with the adapter if one is set.

    Args:
        config: a checked configuration.
        sequence: ranks that share packed rows with this one. None: this rank has its rows for itself.
        layout: how sequences go through the layers, from `self_test`.
    """
    learner = config.learner
    lm = _load(config, getattr(torch, learner.dtype))
    if learner.gradient_checkpointing:
        enable_gradient_checkpointing(lm)
    parameters, base = sum(p.numel() for p in lm.parameters()), None
    if learner.lora.rank:
        base = base_digest(lm)
        add_adapter(lm, learner.lora, seed=config.run.seed)
    return LoadedPolicy(policy=Policy(lm, sequence, layout), parameters=parameters, base=base)


def load_frozen_policy(config: Config, sequence: SequenceGroup | None, layout: Layout) -> Policy:
    """Load the model that the run starts from, without an adapter and without gradients."""
    policy = Policy(_load(config, getattr(torch, config.learner.dtype)), sequence, layout).eval()
    return policy.requires_grad_(False)


def self_test(config: Config, dtype: torch.dtype, device: torch.device) -> SelfTestReport | None:
    """Test that the learner computes the model's own log-probabilities, and choose the layout of its rows.

    Args:
        config: a checked configuration.
        dtype: number format of the test.
        device: device of the test.

    Returns:
        The report, or None with `model.self_test: off`.

    Raises:
        InputError: the model cannot be loaded, or no layout is right.
    """
    mode, path, trust = config.model.self_test, config.model.path, config.model.trust_remote_code
    if mode == "off":
        return None
    shape = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(shape, trust_remote_code=trust).parameters())
    whole = mode == "full" or size < LARGE
    lm = _load(config, dtype) if whole else _fixed(small_copy(shape, dtype, trust_remote_code=trust), config)
    lm.to(device)  # pyright: ignore[reportArgumentType]
    report = layout_of(lm, None if whole else lm.config.num_hidden_layers, config.learner.token_budget)
    if config.learner.sequence_parallel > 1 and report.cause is not None:
        raise InputError(
            f"learner.sequence_parallel = {config.learner.sequence_parallel} shares packed rows, which {path} does not "
            f"allow: {report.cause}; set it to 1"
        )
    return report


def load_language_model(path: str, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    """Load a Hugging Face causal language model.

    Raises:
        InputError: the folder cannot be loaded, or lacks weights of the model.
    """
    disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model.path = {path} cannot be loaded: {error}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model.path = {path}: {len(missing)} weights of the model are not in the files, first {missing[0]}; "
            "download the folder again"
        )
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


def _load(config: Config, dtype: torch.dtype) -> PreTrainedModel:
    trust = config.model.trust_remote_code
    return _fixed(load_language_model(config.model.path, dtype, trust_remote_code=trust), config)


def _fixed(lm: PreTrainedModel, config: Config) -> PreTrainedModel:
    fix_rotary_length(lm, config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    return lm

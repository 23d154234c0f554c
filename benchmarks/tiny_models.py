"""Tiny random language models of the architectures that transformers has, to try the learner and the engine on."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.model.self_test import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "n_embd": 128,
    "d_model": 128,
    "intermediate_size": 160,
    "ffn_hidden_size": 160,
    "ffn_dim": 160,
    "word_embed_proj_dim": 128,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 6,
    "attention_window_size": 6,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 64,
    "mamba_d_ssm": 256,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "state_size": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Settings of every architecture that has them."""

MLA = {"num_key_value_heads": 4, "head_dim": 16}
LAYERS = {"num_hidden_layers": 4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "youtu",
        ),
        MLA,
    ),
    "glm4_moe": {"head_dim": 32},
    "cohere2": LAYERS,
    "cohere2_moe": LAYERS,
    "exaone4": LAYERS,
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"num_hidden_layers": 6},
    "kimi_linear": {**MLA, "linear_head_dim": 32, "linear_num_heads": 4},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 160,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 8,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.3},
    "falcon_h1": {"lm_head_multiplier": 0.1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        **MLA,
        "num_layers": 1,
        "ffn_hidden_size": 160,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "zero_expert_num": 1,
    },
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "ernie4_5_moe": {"moe_k": 2},
    "olmo3": LAYERS,
    "qwen3_5_text": LAYERS,
    "qwen3_5_moe_text": LAYERS,
    "qwen3_next": LAYERS,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {
        "layer_types": ["linear_attention", "hybrid"],
        "num_hidden_layers": 2,
        "n_mamba_heads": 2,
    },
    "zamba2": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Further settings of single architectures, so that every kind of layer appears."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied head": ("llama", {"tie_word_embeddings": False}),
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "llama, rope llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, rope yarn": ("llama", {"rope_parameters": YARN}),
    "llama, rope dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
    "phi3, rope longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "cohere, logit scale": ("cohere", {"logit_scale": 0.3}),
}
"""Variants of architectures: name -> architecture and settings."""
NOT_TEXT = frozenset(
    (
        "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small blt camembert cohere_compass_text "
        "cpmant data2vec-text electra emu3 ernie fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified "
        "gemma4_unified_assistant git got_ocr2 llama4 marian mbart megatron-bert mllama moshi musicgen musicgen_melody mvp "
        "pegasus phi4_multimodal plbart prophetnet qwen3_5 qwen3_5_moe qwen4_exp reformer rembert roberta "
        "roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ).split()
)
"""Architectures with a causal head that are no decoders of text: encoders, parts of larger models, bytes."""


def names() -> list[str]:
    """Return the names that `make` accepts: architectures, then variants."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_TEXT) + list(VARIANTS)


def config(name: str) -> PretrainedConfig:
    """Return the configuration of a tiny model."""
    architecture, settings = VARIANTS.get(name, (name, {}))
    cls: Any = CONFIG_MAPPING[architecture]
    known = set(inspect.signature(cls.__init__).parameters)
    if dataclasses.is_dataclass(cls):
        known |= {field.name for field in dataclasses.fields(cls)}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return cls(**(sizes | SPECIAL.get(architecture, {}) | settings))


def make(name: str) -> PreTrainedModel:
    """Return a tiny model in float32, whose log-probabilities are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm: Any = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
        randomize(lm)
    return lm.eval()

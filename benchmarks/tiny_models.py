"""Tiny random language models of the architectures that transformers has, with every kind of layer of each.

Windows are of few tokens, so that they matter in short sequences. There are 4 heads of attention and 2 of keys and
values where the architecture allows it, so that two ranks can share rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from learner.model.self_test import randomize

VOCABULARY = 128
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Settings of each model whose configuration has them."""

WINDOW = 6
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MIXED = {"layer_types": [SLIDING, FULL], "sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse"]}
FIRST_DENSE = {"first_k_dense_replace": 1}
"""The same in older files, for vLLM."""
LATENT = {
    # The only sizes that vLLM's kernel for CPU has.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "head_dim": 64,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
GROUPS = {"n_group": 2, "topk_group": 1, "topk_method": "noaux_tc"}
INDEXER = {"index_topk": 8, "index_head_dim": 128, "index_n_heads": 16}
"""With fewer heads, scores of keys would be equal, and any of them would be taken."""
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
STATE_SPACE = {"state_size": 8, "time_step_rank": 4}
ROPE = {"rope_theta": 10000.0}
BOTH_ROPES = {SLIDING: {**ROPE, "rope_type": "default"}, FULL: {"rope_theta": 1e6, "rope_type": "default"}}

CATALOGUE: dict[str, dict[str, Any]] = {
    "afmoe": {
        **EXPERTS,
        **MIXED,
        "num_dense_layers": 1,
        "num_shared_experts": 1,
        "mup_enabled": True,
        # Of the files of such models, for vLLM. transformers knows no others.
        "score_func": "sigmoid",
        "route_norm": True,
        "n_group": 1,
        "topk_group": 1,
    },
    "apertus": {},
    "arcee": {},
    "axk1": {**LATENT, **ROUTED_EXPERTS, "first_k_dense_replace": 1, **GROUPS},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 16},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {**MIXED, "logit_scale": 0.5},
    "cohere2_moe": {
        **MIXED,
        "logit_scale": 0.5,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "prefix_dense_intermediate_size": 160,
    },
    "cwm": {**MIXED, "rope_parameters": {**ROPE, "rope_type": "default"}},
    "dbrx": {
        "d_model": 128,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 128, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**LATENT, **ROUTED_EXPERTS, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**LATENT, **ROUTED_EXPERTS, "first_k_dense_replace": 1, **GROUPS},
    "deepseek_v32": {
        **LATENT,
        **ROUTED_EXPERTS,
        **DENSE_FIRST,
        **GROUPS,
        **INDEXER,
    },
    "diffllama": {},
    # Beyond this window it chooses among keys, and those of a repeated token have equal scores.
    "doge": {"keep_window_size": 64},
    "dots1": {**ROUTED_EXPERTS, **MIXED, "first_k_dense_replace": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": 64,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    },
    "exaone4": {**MIXED},
    "exaone_moe": {**EXPERTS, **MIXED, **DENSE_FIRST, "num_shared_experts": 1},
    "falcon": {},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 256, "lm_head_multiplier": 0.1},
    "falcon_mamba": {**STATE_SPACE},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {},
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {**MIXED, "query_pre_attn_scalar": 16, "rope_parameters": BOTH_ROPES},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "sliding_window": WINDOW,
        "intermediate_size": [160] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        **MIXED,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "per_layer_config": {"01": {"head_dim": 64}},
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {**ROUTED_EXPERTS, "first_k_dense_replace": 1, "use_qk_norm": True, "head_dim": 32},
    "glm4_moe_lite": {**LATENT, **ROUTED_EXPERTS, **DENSE_FIRST, **FIRST_DENSE, "topk_method": "noaux_tc"},
    "glm_moe_dsa": {
        **LATENT,
        **ROUTED_EXPERTS,
        **DENSE_FIRST,
        **INDEXER,
        "indexer_types": ["full", "full"],
    },
    "gpt2": {},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "num_layers": 2},
    "gpt_neox": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "gpt_oss": {
        **MIXED,
        **LOCAL_EXPERTS,
        "rope_parameters": {
            **ROPE,
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    },
    "gptj": {"rotary_dim": 16},
    "granite": {
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "granite_swa": {**MIXED, "attention_multiplier": 0.25, "layer_rope_theta": [10000.0, 5000.0]},
    "granitemoe": {**LOCAL_EXPERTS, "attention_multiplier": 0.25},
    "granitemoehybrid": {
        **MAMBA,
        **LOCAL_EXPERTS,
        "layer_types": [LINEAR, FULL],
        "shared_intermediate_size": 64,
        "attention_multiplier": 0.25,
    },
    "granitemoeshared": {**LOCAL_EXPERTS, "shared_intermediate_size": 64, "attention_multiplier": 0.25},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "hy_v3": {**EXPERTS, **DENSE_FIRST, **FIRST_DENSE, "num_shared_experts": 1, "expert_hidden_dim": 64},
    "hyperclovax": {},
    "jais2": {},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {**LOCAL_EXPERTS, "kv_channels": 32},
    "kimi_linear": {
        **LATENT,
        **DENSE_FIRST,
        "q_lora_rank": None,
        "layer_types": [LINEAR, FULL],
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 64,
        "linear_head_dim": 32,
        "linear_num_heads": 4,
    },
    "laguna": {
        **EXPERTS,
        **MIXED,
        **DENSE_FIRST,
        "shared_expert_intermediate_size": 64,
        "num_attention_heads_per_layer": [4, 4],
    },
    "lfm2": {
        "layer_types": ["conv", FULL],
        "block_auto_adjust_ff_dim": False,
        "conv_dim": 128,
        "block_dim": 128,
        "block_ff_dim": 160,
    },
    "lfm2_moe": {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", FULL]},
    "llama": {},
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 160,
        "moe_layers": [1],
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0],
        "layer_types": ["chunked_attention", FULL],
        "attention_chunk_size": 8,
        "floor_scale": 8,
    },
    "longcat_flash": {
        **LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 160,
        "moe_topk": 2,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "expert_ffn_hidden_size": 64,
    },
    "mamba": {**STATE_SPACE},
    "mamba2": {**STATE_SPACE, "num_heads": 8, "n_groups": 1, "chunk_size": 8},
    "mellum": {**EXPERTS, **MIXED, **DENSE_FIRST, "num_local_experts": 4},
    "mimo_v2_flash": {
        **ROUTED_EXPERTS,
        **MIXED,
        **DENSE_FIRST,
        "v_head_dim": 16,
        # Of the files of such models, for vLLM.
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 1],
        "layernorm_epsilon": 1e-5,
        "swa_head_dim": 32,
        "swa_v_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "sliding_window_size": WINDOW,
    },
    "minicpm3": {**LATENT, "dim_model_base": 64},
    "minimax": {**LOCAL_EXPERTS, "layer_types": [LINEAR, FULL], "block_size": 8},
    "minimax_m2": {**LOCAL_EXPERTS, "rotary_dim": 32},
    "ministral": {**MIXED},
    "ministral3": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {**LOCAL_EXPERTS, "sliding_window": WINDOW},
    "modernbert-decoder": {"layer_types": [FULL, SLIDING], "local_attention": 2 * WINDOW},
    "mpt": {"d_model": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        **ROUTED_EXPERTS,
        "layers_block_type": [LINEAR, "moe", FULL, "mlp"],
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 64,
        "use_mamba_kernels": False,
    },
    "olmo": {"clip_qkv": 2.0},
    "olmo2": {},
    "olmo3": {**MIXED},
    "olmo_hybrid": {**DELTA, "layer_types": [LINEAR, FULL], "linear_num_key_heads": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": {},
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 128},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {**LOCAL_EXPERTS},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "mlp_only_layers": [0], "shared_expert_intermediate_size": 64},
    "qwen3": {},
    "qwen3_5_moe_text": {**DELTA, **EXPERTS, "layer_types": [LINEAR, FULL], "shared_expert_intermediate_size": 64},
    "qwen3_5_text": {**DELTA, "layer_types": [LINEAR, FULL]},
    "qwen3_moe": {**EXPERTS, "num_local_experts": 4, "mlp_only_layers": [0]},
    "qwen3_next": {
        **DELTA,
        **EXPERTS,
        "layer_types": [LINEAR, FULL],
        "mlp_only_layers": [0],
        "shared_expert_intermediate_size": 64,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 128,
        "attention_window_size": WINDOW,
    },
    "rwkv": {"attention_hidden_size": 128, "context_length": 256},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "solar_open": {**ROUTED_EXPERTS},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "starcoder2": {"sliding_window": WINDOW},
    "vaultgemma": {**MIXED, "query_pre_attn_scalar": 16},
    "xglm": {"d_model": 128, "ffn_dim": 160, "num_layers": 2, "attention_heads": 4},
    "xlstm": {"embedding_dim": 128, "num_blocks": 2, "num_heads": 4, "chunk_size": 8},
    "youtu": {**LATENT},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"],
        "attention_hidden_size": 256,
        "attention_head_dim": 64,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 32,
        "chunk_size": 8,
        "use_mamba_kernels": False,
        "adapter_rank": 4,
        "num_key_value_heads": 4,
    },
    "zaya": {**EXPERTS, "num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid"], "router_hidden_size": 16},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk2": {**LATENT, **ROUTED_EXPERTS, **DENSE_FIRST, **INDEXER},
    "ctrl": {"n_embd": 128, "dff": 160, "n_layer": 2, "n_head": 4},
    "deepseek_v4": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "head_dim": 32,
        "partial_rotary_factor": 0.25,
        "q_lora_rank": 32,
        "o_lora_rank": 16,
        "o_groups": 2,
        "hc_mult": 2,
        "sliding_window": WINDOW,
        "index_topk": 4,
        "index_head_dim": 16,
        "index_n_heads": 16,
    },
    "gemma4_unified_text": {**MIXED, "per_layer_config": {"01": {"head_dim": 64}}},
    "granitemoe_swa": {
        **MIXED,
        **LOCAL_EXPERTS,
        "attention_multiplier": 0.25,
        "shared_intermediate_size": 64,
        "layer_rope_theta": [10000.0, 5000.0],
    },
    "hrm_text": {"num_layers_per_stack": 1, "embedding_scale": 8.0, "prefix_lm": False},
    "hy_v4": {
        **LATENT,
        **ROUTED_EXPERTS,
        **DENSE_FIRST,
        **INDEXER,
        "indexer_types": ["full", "shared"],
        "hc_mult": 2,
    },
    "inkling_text": {
        **ROUTED_EXPERTS,
        **DENSE_FIRST,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 32,
        "sliding_window_size": WINDOW,
        "d_rel": 4,
        "rel_extent": 16,
        "logits_mup_width_multiplier": 1.0,
    },
    "minimax_m3_vl_text": {
        **LOCAL_EXPERTS,
        **DENSE_FIRST,
        "dense_intermediate_size": 160,
        "shared_intermediate_size": 64,
        "rotary_dim": 16,
        "layer_types": ["minimax_m3_sparse", FULL],
        "index_head_dim": 16,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "qwen4_exp_text": {
        **DELTA,
        **EXPERTS,
        "layer_types": [LINEAR, FULL],
        "shared_expert_intermediate_size": 64,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_embed_dim": 16,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
}
"""Settings of each architecture beside the common ones, by its `model_type`."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, residual after norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "cohere, no qk norm": ("cohere", {"use_qk_norm": False}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox, serial blocks": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_oss, plain rope": ("gpt_oss", {"rope_parameters": {**ROPE, "rope_type": "default"}}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, rope dynamic": ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}}),
    "llama, rope linear": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}),
    "llama, rope llama3": (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama, rope yarn": (
        "llama",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "opt, projections": ("opt", {"word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "phi3, longrope": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.1 * i for i in range(16)],
                "long_factor": [2.0 + 0.5 * i for i in range(16)],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "phi, qk norm": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [FULL, SLIDING]},
    ),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "stablelm, serial blocks": ("stablelm", {"use_parallel_residual": False, "qk_layernorm": False}),
}
"""An architecture and settings that replace its own, by a name of the variant."""

NOT_TEXT = frozenset(
    (
        "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small blt camembert "
        "cohere_compass_text cpmant data2vec-text electra emu3 ernie fuyu gemma3 gemma3n gemma4 gemma4_assistant "
        "gemma4_unified gemma4_unified_assistant git got_ocr2 gpt-sw3 llama4 marian mbart megatron-bert mllama "
        "moshi musicgen musicgen_melody mvp pegasus phi4_multimodal plbart prophetnet qwen3_5 qwen3_5_moe "
        "qwen4_exp reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta "
        "xlm-roberta-xl xlnet xmod"
    ).split()
)
"""Architectures with a causal head that are no decoders of text alone: encoders, parts of larger models, bytes. And
gpt-sw3, which is gpt2."""


def names() -> list[str]:
    """Return the names that `make` accepts."""
    return sorted([*CATALOGUE, *VARIANTS])


def config(name: str) -> Any:
    """Return the configuration of a model of the catalogue."""
    family, own = VARIANTS.get(name, (name, {}))
    shape = CONFIG_MAPPING[family]
    known = {**shape().to_dict(), **shape.attribute_map}
    common = {key: value for key, value in COMMON.items() if key in known}
    return shape(**{**common, **CATALOGUE[family], **own})


def make(name: str, folder: Path | None = None, seed: int = 0) -> PreTrainedModel:
    """Return a model of the catalogue with random weights in float32, in evaluation mode.

    Matrices have variance 1 / inputs, so that log-probabilities are peaked. Other weights and buffers are shaken.

    Args:
        name: one of `names()`.
        folder: a folder to save the model in, without a tokenizer.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm: Any = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
        randomize(lm)
    lm.eval()
    if folder is not None:
        lm.save_pretrained(folder)
    return lm

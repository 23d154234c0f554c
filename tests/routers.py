"""Tiny random models whose routers have a bias that is a buffer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 256,
}
OWN: dict[str, dict[str, Any]] = {
    "glm4_moe": {"head_dim": 8},
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "topk_method": "noaux_tc",  # vLLM has the bias only then
    },
}


def write_router_model(family: str, folder: Path) -> Path:
    """Write a model of a family, with the tokenizer of the demo model, and return its folder."""
    demo = Path("configs/models/countdown-0.5m")
    config = AutoConfig.for_model(family, vocab_size=64, **SIZES, **OWN[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        # As large as real ones are, where bfloat16 would lose the differences.
        torch.nn.init.normal_(model.get_buffer(BIAS), mean=8.0, std=0.2)
    model.save_pretrained(folder)
    for file in demo.glob("*token*"):
        shutil.copy(file, folder)
    return folder

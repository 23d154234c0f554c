"""The model folder that the demo trains from."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxpo.rewards.verifiers.countdown import countdown
from maxpo.tasks.countdown import problems, teacher

FOLDER = Path(__file__).resolve().parents[2] / "configs/models/countdown-0.5m"
PAD, BOS, EOS, UNK = range(4)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32).eval()


def test_the_folder_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000


def test_config_and_generation_config():
    config = json.loads((FOLDER / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "vocab_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    assert {name: config.get(name) for name in expected} == expected
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == EOS


def test_weights_are_bfloat16_and_the_head_is_tied():
    tensors = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_tokenizer_has_one_token_per_character_and_adds_none(tokenizer):
    assert len(tokenizer) == 64
    assert len(tokenizer.encode("3 7 2=13:")) == 9
    assert tokenizer.encode("3 7 2=13:") == tokenizer.encode("3 7 2=13:", add_special_tokens=False)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)


def test_the_tokenizer_round_trips_countdown_texts(tokenizer):
    rng = random.Random(0)
    for problem in problems(0, 200, 0)[0]:
        answer = teacher(problem.reference["numbers"], problem.reference["target"], 0.5, rng)
        text = problem.prompt + answer
        token_ids = tokenizer.encode(text)
        assert len(token_ids) == len(text)
        assert UNK not in token_ids
        assert tokenizer.decode(token_ids) == text
        assert tokenizer.decode([*token_ids, EOS], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["a b  c", " 3 , 4 ", "\n\n", "a.b !"])
def test_the_tokenizer_keeps_white_space(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters_become_the_unknown_token(tokenizer):
    assert tokenizer.encode("3\u00e9\U0001f600A") == [*tokenizer.encode("3"), UNK, UNK, UNK]


@torch.no_grad()
def test_the_model_is_a_weak_solver_of_held_out_problems(tokenizer, model):
    # 64 problems x 16 samples: well-formed nearly always, right about one time in nine.
    torch.manual_seed(0)
    held_out = problems(0, 0, 64)[1]
    inputs = tokenizer([problem.prompt for problem in held_out], padding=True, return_tensors="pt")
    output_ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=16,
        max_new_tokens=26,
    )
    texts = tokenizer.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [countdown(text, held_out[row // 16].reference) for row, text in enumerate(texts)]
    assert 0.06 < sum(score.reward for score in scores) / len(scores) < 0.18
    assert sum(score.parts["format"] for score in scores) / len(scores) > 0.7

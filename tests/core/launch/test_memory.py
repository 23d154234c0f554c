"""The memory plan: against DeepSpeed's own estimates, by hand, and the settings it proposes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from rich.console import Console
from safetensors.torch import load_file

from launch.memory import GIB, ModelShape, learner_bytes, make_plan, remedies, sequences_at_once, shape_of, show_plan
from maxpo.config import AlgorithmConfig, Config, DataConfig, LearnerConfig, LoraConfig, ModelConfig, RolloutConfig

QWEN_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
"""The shape of Qwen2.5-7B, which has 7.62 B parameters by its model card."""
STATES = ("weights", "gradients", "master weights", "Adam's moments")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ModelShape]:
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return str(folder), shape_of(str(folder))


def config(model: str = "", **learner: object) -> Config:
    return Config(
        model=ModelConfig(path=model),
        data=DataConfig(max_prompt_tokens=1024),
        rollout=RolloutConfig(max_new_tokens=3072),
        learner=LearnerConfig(**({"lr": 1e-6, "zero_stage": 2} | learner)),  # type: ignore[arg-type]
    )


def test_the_shape_of_a_model(qwen: tuple[str, ModelShape]) -> None:
    shape = qwen[1]
    assert shape.parameters == pytest.approx(7.62e9, rel=0.002)
    assert shape.largest_layer == 152064 * 3584  # the embedding
    assert (shape.layers, shape.hidden, shape.kv_width, shape.vocabulary) == (28, 3584, 512, 152064)
    demo = "configs/models/countdown-0.5m"
    assert shape_of(demo).parameters == sum(t.numel() for t in load_file(f"{demo}/model.safetensors").values())


@pytest.mark.parametrize("ranks", [1, 4, 8, 32])
def test_model_states_are_those_of_deepspeeds_estimators(qwen: tuple[str, ModelShape], ranks: int) -> None:
    shape = qwen[1]
    two = learner_bytes(config(zero_stage=2, ranks=ranks), shape)
    theirs = estimate_zero2_model_states_mem_needs(shape.parameters, ranks, 1, cpu_offload=False)[1]
    # They keep the gradients in 16 bits and copy them to float32. Here the sums are float32, beside those of a layer.
    theirs += 2 * shape.largest_layer - 2 * shape.parameters / ranks
    assert sum(two[name] for name in STATES) == pytest.approx(theirs, rel=1e-6)
    three = learner_bytes(config(zero_stage=3, ranks=ranks), shape)
    theirs = estimate_zero3_model_states_mem_needs(
        shape.parameters, shape.largest_layer, ranks, 1, cpu_offload=False, cpu_offload_params=False
    )[1]
    # They leave out the copy of the gradients that the update of a part of the parameters makes.
    copy = 4 * min(shape.parameters / ranks, 1e9)
    assert sum(three[name] for name in STATES) == pytest.approx(theirs + copy, rel=1e-6)


def test_by_hand() -> None:
    shape = ModelShape(parameters=1000, largest_layer=100, layers=2, hidden=10, kv_width=4, vocabulary=50)
    settings = config(zero_stage=0, dtype="float32", token_budget=8, logprob_chunk=4)
    got = learner_bytes(settings, shape)
    assert (got["weights"], got["gradients"], got["master weights"], got["Adam's moments"]) == (4000, 4000, 0, 8000)
    assert got["activations"] == 34 * (8 * 10 * 2) * 2
    assert got["logits"] == 3 * 4 * 4 * 50
    assert got["frozen reference"] == got["buckets"] == 0
    settings.algorithm = AlgorithmConfig(kl_coef=0.1)
    assert learner_bytes(settings, shape)["frozen reference"] == 4000
    # Keys and values of 4096 tokens: 2 x 2 layers x 4 wide x 2 bytes each.
    assert sequences_at_once(settings, shape, 10 * 4096 * 32) == 10
    settings.rollout.tensor_parallel_size = 2
    assert sequences_at_once(settings, shape, 10 * 4096 * 32) == 20


@pytest.mark.parametrize(
    ("stage", "dtype", "gradients", "buckets"),
    [
        (0, "float32", 4000, 0),
        (1, "float32", 4000 + 2000, 4000),
        (1, "bfloat16", 2000 + 4000, 4000),
        (1, "float16", 2000 + 4000 + 2000, 4000),
        (2, "float32", 2000 + 2000, 4000),
        (2, "bfloat16", 2000 + 200, 6000),
        (2, "float16", 2000 + 200, 6000),
        (3, "float32", 2000 + 2000 + 400, 4000),
        (3, "bfloat16", 2000 + 2000 + 200, 4000),
    ],
)
def test_gradients_are_added_up_in_float32(stage: int, dtype: str, gradients: int, buckets: int) -> None:
    shape = ModelShape(parameters=1000, largest_layer=100, layers=2, hidden=10, kv_width=4, vocabulary=50)
    got = learner_bytes(config(zero_stage=stage, dtype=dtype, ranks=2 if stage else 1), shape)
    assert (got["gradients"], got["buckets"]) == (gradients, buckets)


def test_an_adapter_by_hand() -> None:
    demo = "configs/models/countdown-0.5m"
    lora = LoraConfig(rank=4, targets=["q_proj", "down_proj"])
    shape = shape_of(demo, lora)
    assert shape.adapter == 3 * 4 * ((128 + 128) + (256 + 128))
    settings = config(zero_stage=2, dtype="bfloat16", lora=lora)
    settings.algorithm = AlgorithmConfig(kl_coef=0.1)
    got, n = learner_bytes(settings, shape), shape.adapter
    assert got["weights"] == 2 * (shape.parameters + n)
    # The sums in float32, and the gradients of one row: the adapter is smaller than a layer.
    assert (got["gradients"], got["master weights"], got["Adam's moments"]) == (6 * n, 4 * n, 8 * n)
    assert got["frozen reference"] == 0  # it is the base without the adapter
    full = learner_bytes(config(zero_stage=2, dtype="bfloat16"), shape_of(demo))
    assert got["activations"] == full["activations"]


def test_checkpointing_and_a_smaller_chunk_need_less(qwen: tuple[str, ModelShape]) -> None:
    shape = qwen[1]
    plain, saving = (learner_bytes(config(gradient_checkpointing=on), shape) for on in (False, True))
    assert saving["activations"] < plain["activations"] / 8
    assert learner_bytes(config(logprob_chunk=512), shape)["logits"] == plain["logits"] / 4


def test_what_is_proposed_is_enough_and_no_less_would_be(qwen: tuple[str, ModelShape]) -> None:
    shape = qwen[1]
    settings = config(gradient_checkpointing=True, ranks=2)
    plan = make_plan(settings, shape, gpu_gib=80, shared=False)
    assert not plan.learner_fits
    assert plan.rollout_fits
    found = remedies(settings, shape, gpu_gib=80, shared=False)
    assert "learner.ranks=4" in found
    for remedy in found:
        key, _, value = remedy.partition("=")
        changed = config(**({"gradient_checkpointing": True, "ranks": 2} | {key.split(".")[1]: int(value)}))
        assert make_plan(changed, shape, gpu_gib=80, shared=False).learner_fits
    eight = config(gradient_checkpointing=True, ranks=8)
    assert make_plan(eight, shape, gpu_gib=80, shared=False).learner_fits
    assert remedies(eight, shape, gpu_gib=80, shared=False) == []


def test_the_command_says_what_fits_and_what_to_do(qwen: tuple[str, ModelShape]) -> None:
    def said(settings: Config, gpus: int, gib: float) -> tuple[int, str]:
        console = Console(file=StringIO(), width=150)
        code = show_plan(settings, console, gpus=gpus, gpu_gib=gib)
        return code, console.file.getvalue()  # type: ignore[attr-defined]

    code, text = said(config(qwen[0], gradient_checkpointing=True, ranks=2), 3, 80)
    assert code == 1
    assert "7.62 B parameters; 3 x 80 GiB of GPU: 2 for the learner, ZeRO stage 2" in text
    assert "any one of these would make it fit: " in text
    assert "learner.ranks=4" in text
    code, text = said(config(qwen[0], gradient_checkpointing=True, ranks=8), 9, 80)
    assert code == 0
    assert "an engine holds" in text
    code, text = said(config(qwen[0], gradient_checkpointing=True), 2, 16)
    assert code == 1
    assert "NO" in text
    small = config(str(Path("configs/models/countdown-0.5m")), token_budget=4096)
    small.rollout.gpu_memory_utilization = 0.4
    code, text = said(small, 1, 80)
    assert code == 0
    assert "learner and engines share them" in text


def test_sharing_leaves_room_for_the_engine_beside_what_the_learner_keeps(qwen: tuple[str, ModelShape]) -> None:
    settings = config(ranks=8, gradient_checkpointing=True)
    settings.rollout.gpu_memory_utilization = 0.4
    alone, shared = (make_plan(settings, qwen[1], gpu_gib=80, shared=s) for s in (False, True))
    assert (alone.learner_limit, shared.learner_limit) == (79 * GIB, 78 * GIB)
    n = qwen[1].parameters
    kept = 2 * n + (4 * n / 8 + 2 * qwen[1].largest_layer) + 4 * n / 8 + 8 * n / 8 + (2 + 4) * 5e8
    assert shared.sampling == pytest.approx(0.4 * 80 * GIB + kept)
    assert shared.learner_fits
    settings.rollout.gpu_memory_utilization = 0.6
    assert not make_plan(settings, qwen[1], gpu_gib=80, shared=True).learner_fits
    assert make_plan(settings, qwen[1], gpu_gib=80, shared=False).learner_fits

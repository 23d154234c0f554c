"""The adapter without a process group: what it adds, where it goes, what is written, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.tiny_models import make
from launch.run.preflight import check_model
from launch.run.resuming import describe_changes
from learner.model import lora as lora_module
from learner.model.lora import add_adapter, base_digest, check_base
from learner.model.parameters import Weight, policy_weights, trained_parameters
from learner.state.policy_folder import write_policy
from maxpo.config import LoraConfig
from maxpo.configure.loading import load_config
from maxpo.configure.writing import to_yaml
from maxpo.errors import CheckpointError, InputError
from tests.integration.learner_ranks import adapt

MODEL = "configs/models/countdown-0.5m"
DEMO = Path("configs/presets/demo.yaml")
LORA = LoraConfig(rank=4, alpha=6.0)


def model(path: str = MODEL, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def test_another_base_is_told() -> None:
    lm = model()
    before = base_digest(lm)
    assert before == base_digest(model())
    check_base(before, base_digest(model()), MODEL)
    check_base(None, before, MODEL)  # a checkpoint from before there was a checksum
    with torch.no_grad():
        lm.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    with pytest.raises(InputError, match=f"model.path = {MODEL}: its weights are not those that the adapter"):
        check_base(before, base_digest(lm), MODEL)
    check_base(before, base_digest(model(dtype=torch.bfloat16)), MODEL)


def test_what_an_adapter_adds_by_hand() -> None:
    base = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), requires_grad=False)
    low_rank = nn.Parameter(torch.tensor([[1.0, 0.5]])), nn.Parameter(torch.tensor([[2.0], [-1.0]]))
    merged = Weight(base, low_rank, 0.5).copy(torch.float32)
    assert merged.tolist() == [[2.0, 2.5], [2.5, 3.75]]
    assert base.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert not merged.requires_grad
    # In float32 to the end: bfloat16 has 256 and 258, nothing between.
    wide = nn.Parameter(torch.tensor([[256.0]], dtype=torch.bfloat16), requires_grad=False)
    pair = tuple(nn.Parameter(torch.tensor(t, dtype=torch.bfloat16)) for t in ([[1.0], [1.5]], [[1.0, 1.0]]))
    assert Weight(wide, pair, 0.5).copy(torch.float32).tolist() == [[257.25]]  # type: ignore[arg-type]
    assert Weight(wide, pair, 0.5).copy(torch.bfloat16).tolist() == [[258.0]]  # type: ignore[arg-type]
    copied = Weight(base).copy(torch.float32)
    copied.add_(1)
    assert base.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_nothing_and_hides_no_weight(dtype: torch.dtype) -> None:
    plain, lm = model(dtype=dtype), model(dtype=dtype)
    add_adapter(lm, LORA, seed=3)
    weights, before = policy_weights(lm), dict(plain.named_parameters())
    assert list(weights) == list(before)
    assert all(torch.equal(weights[name].copy(dtype), before[name]) for name in before)
    trained = trained_parameters(lm)
    assert set(trained) == {
        f"{name.removesuffix('.weight')}.lora_{side}.weight" for name in before if "proj" in name for side in "AB"
    }
    assert {p.dtype for p in trained.values()} == {dtype}
    assert sum(p.numel() for p in trained.values()) == lora_module.adapter_parameters(plain, LORA)


def test_the_seed_alone_decides_the_adapter() -> None:
    found = []
    for seed in (3, 3, 4):
        lm = model()
        torch.rand(seed)  # what was drawn before does not count
        state = torch.get_rng_state()
        add_adapter(lm, LORA, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(trained_parameters(lm)["model.layers.1.mlp.up_proj.lora_A.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_merged_weights_are_the_function_that_trains(tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, alpha=6.0, targets=["v_proj", "down_proj"])
    lm, ids = model(), torch.arange(4, 30)[None]
    base = {name: p.detach().clone() for name, p in lm.named_parameters()}
    said_before = lm(input_ids=ids).logits.detach()
    adapt(lm, lora)
    write_policy(lm, MODEL, tmp_path / "policy", lora)
    assert all(torch.equal(w.base, base[name]) for name, w in policy_weights(lm).items())
    merged = model(str(tmp_path / "policy"))
    said = lm(input_ids=ids).logits.detach()
    torch.testing.assert_close(merged(input_ids=ids).logits, said, rtol=1e-4, atol=1e-4)
    assert float((said - said_before).abs().max()) > 0.1
    written = load_file(tmp_path / "policy" / "model.safetensors")
    assert set(written) == set(base)
    changed = {name for name in base if not torch.equal(written[name], base[name])}
    assert changed == {name for name in base if "v_proj" in name or "down_proj" in name}
    # The adapter in peft's own layout, on the base, is the same model.
    loaded: Any = PeftModel.from_pretrained(model(), str(tmp_path / "policy" / "adapter"))
    assert loaded.peft_config["default"].base_model_name_or_path == MODEL
    for name, p in loaded.merge_and_unload().named_parameters():
        assert torch.equal(p, written[name]), name


def test_targets_that_the_model_does_not_have_are_told_with_those_that_it_has() -> None:
    there = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    for targets, missing in (
        (["q_proj", "c_attn"], "c_attn"),
        (["lm_head"], "lm_head"),
        (["embed_tokens"], "embed_to"),
    ):
        config = load_config([DEMO], ["learner.lora.rank=2", f"learner.lora.targets={targets}"]).config
        with pytest.raises(InputError, match=f"no linear layer {missing}.*there are: {there}"):
            check_model(config)
    check_model(load_config([DEMO], ["learner.lora.rank=2", "learner.lora.targets=[q_proj]"]).config)


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("llama", [], r"adapter of rank 4 on 100 % of the weights in matrices$"),
        (
            "llama",
            ["up_proj"],
            r"on 20 % .*, none on layers.mlp.gate_proj, layers.mlp.down_proj, .*; learner.lora.targets",
        ),
        ("qwen3_moe", [], r"on 25 % .*, none on layers.mlp.experts.gate_up_proj, layers.mlp.experts.down_proj.*fused"),
    ],
)
def test_the_share_of_the_matrices_that_an_adapter_covers_is_said(family: str, targets: list[str], said: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    moe = {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8, "num_key_value_heads": 4, "vocab_size": 64}
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **moe))
    lora = LoraConfig(rank=4, targets=targets)
    sentence = lora_module.coverage(lm, lora)
    assert re.search(said, sentence), sentence
    # The share of the parameters that the layers hold.
    layers = [layer for same in lora_module.target_layers(lm, lora).values() for layer in same]
    inside = sum(
        p.numel() for name, p in lm.named_parameters() if p.ndim > 1 and "embed" not in name and "head" not in name
    )
    assert f" {100 * sum(layer.weight.numel() for layer in layers) / inside:.0f} %" in sentence


def test_a_missing_peft_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(InputError, match=r'learner.lora.rank needs peft: pip install "maxpo\[lora\]"'):
        check_model(load_config([DEMO], ["learner.lora.rank=2"]).config)
    check_model(load_config([DEMO], []).config)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (["learner.lora.rank=4"], ["learner.lora.rank=4"], True),
        (["learner.lora.rank=4"], ["learner.lora.rank=8"], False),
        (["learner.lora.rank=4"], [], False),
        ([], ["learner.lora.rank=4"], False),
        (["learner.lora.rank=4"], ["learner.lora.rank=4", "learner.lora.alpha=1"], False),
        (["learner.lora.rank=4"], ["learner.lora.rank=4", "learner.lora.targets=[q_proj]"], False),
        ([], ["learner.lora.alpha=1"], True),
    ],
)
def test_a_run_goes_on_with_the_adapter_it_had(before: list[str], now: list[str], same: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config([DEMO], before)))
    settings = to_yaml(load_config([DEMO], now))
    if same:
        describe_changes(tmp_path, settings, Console(quiet=True))
    else:
        with pytest.raises(CheckpointError, match=r"must not change:\n  learner\.lora: .* in the checkpoint, .* now$"):
            describe_changes(tmp_path, settings, Console(quiet=True))


def test_checkpoints_from_before_there_were_adapters_go_on(tmp_path: Path) -> None:
    settings = to_yaml(load_config([DEMO], []))
    before, _, after = settings.partition("  lora:\n")
    (tmp_path / "config.yaml").write_text(before + after[after.index("sync:") :])
    assert "lora" not in (tmp_path / "config.yaml").read_text()
    describe_changes(tmp_path, settings, Console(quiet=True))


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_moe", "deepseek_v3", "gemma3n_text", "zamba2", "llama"])
def test_an_adapter_of_any_architecture_hides_no_weight_and_reaches_every_linear_layer(family: str) -> None:
    lm: Any = make(family)
    before, tokens = policy_weights(lm).keys(), torch.arange(3, 30)[None]
    layers = [layer for same in lora_module.target_layers(lm, LORA).values() for layer in same]
    plain = lm(tokens).logits
    adapt(lm, LORA)
    weights = policy_weights(lm)
    assert weights.keys() == before
    assert len([w for w in weights.values() if w.low_rank]) == len(layers) == len(trained_parameters(lm)) / 2
    # What is sent is the function that trains.
    changed = lm(tokens).logits
    assert float((changed - plain).abs().max()) > 0.01
    merged: Any = make(family)
    merged.load_state_dict({name: weight.copy(torch.float32) for name, weight in weights.items()}, strict=False)
    torch.testing.assert_close(merged(tokens).logits, changed, atol=1e-3, rtol=1e-3)

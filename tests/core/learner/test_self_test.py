"""The self-test of the learner: which models may be packed, and that what it says is true."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from launch.run.preflight import test_learner as learner_in_words
from learner.model.loading import load_language_model, self_test
from learner.model.packed_attention import PackedMask, RowLayout, packed_attention
from learner.model.policy import Policy, use_attention
from learner.model.rotary import fix_rotary_length
from learner.model.self_test import layout_of, randomize, row_of, small_copy
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import InputError

DEMO = Path("configs/presets/demo.yaml")
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def model(family: str, **settings: object) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | settings)))
        randomize(lm)
    return lm.eval()


def alone(lm: Any, tokens: Tensor) -> Tensor:
    """Log-probabilities of the second and further tokens, by transformers."""
    return lm(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def sequences(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 57, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize(
    ("family", "settings", "layout"),
    [
        ("mistral", {"sliding_window": 6}, "packed"),
        ("gemma2", {"sliding_window": 6, "head_dim": 16, "attn_logit_softcapping": 1.0}, "packed"),
        ("gemma2", {"sliding_window": 6, "head_dim": 16, "final_logit_softcapping": 2.0}, "packed"),
        ("gpt_oss", {"sliding_window": 6, "head_dim": 16, "num_local_experts": 4}, "packed"),
        ("cohere", {"logit_scale": 0.1}, "packed"),
        ("granite", {"logits_scaling": 8.0}, "packed"),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "packed"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "sdpa"),
        ("mamba", {}, "eager"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "sdpa"),
        ("gptj", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8}, "sdpa"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_the_layout_that_is_found_gives_the_models_own_log_probabilities(
    family: str, settings: dict[str, object], layout: str
) -> None:
    lm = model(family, **settings)
    use_attention(lm, "eager")  # gemma2's caps are left out by transformers' other attention
    # Other sequences than those of the test, longer than a window and of equal lengths too.
    tokens = sequences(40, 3, 17, 17, 2, 64)
    expected = [alone(lm, x).detach() for x in tokens]
    report = layout_of(copy.deepcopy(lm))
    assert (report.layout, report.cause is None) == (layout, layout == "packed")
    policy = Policy(lm, layout=report.layout)
    logprobs, _ = policy(row_of(tokens), temperature=1.0, chunk=7)
    for got, want in zip(logprobs.split([len(x) for x in tokens]), expected, strict=True):
        torch.testing.assert_close(got[1:], want, atol=2e-5, rtol=1e-5)
    # The gradient of one sequence's log-probabilities is that of the sequence alone.
    embedding = lm.get_input_embeddings().weight
    (packed,) = torch.autograd.grad(logprobs[40 + 3 : 40 + 3 + 17].sum(), embedding)
    use_attention(lm, "eager")
    (single,) = torch.autograd.grad(alone(lm, tokens[2]).sum(), embedding)
    torch.testing.assert_close(packed, single, atol=1e-4, rtol=1e-4)


def test_the_layer_that_mixes_sequences_is_named() -> None:
    report = layout_of(model("lfm2", layer_types=["full_attention", "conv"]))
    assert report.cause is not None
    assert report.cause.startswith("the output of Lfm2ShortConv (model.layers.1.conv) depends on other sequences (")
    assert "sequences are not packed; one sequence a row" in report.sentence()


def test_a_layer_that_looks_at_places_in_the_row_shows_in_a_long_row() -> None:
    settings = {"num_local_experts": 2, "intermediate_size_mlp": 48, "attn_temperature_tuning": True}
    lm = model("llama4_text", **settings, floor_scale=200, attn_scale=1.0, no_rope_layers=[0, 0], head_dim=8)
    assert layout_of(lm).layout == "packed", "a short row shows nothing"
    report = layout_of(lm, token_budget=1000)
    assert report.layout == "sdpa"
    assert "at the end of a row of 986 tokens it is 2.8 nats off" in report.sentence()
    assert layout_of(model("llama"), token_budget=1000).layout == "packed"


class Neighbour(nn.Module):
    """A layer that adds the mean over the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.mean((0, 1))


def test_a_model_that_no_layout_trains_right_is_refused() -> None:
    lm = model("llama")
    lm.model.layers[1].mlp = Neighbour(lm.model.layers[1].mlp)
    before = copy.deepcopy(lm.state_dict())
    with pytest.raises(InputError, match=r"LlamaForCausalLM cannot be trained.*Packed rows.*Neighbour") as refusal:
        layout_of(lm)
    assert "One sequence a row" in str(refusal.value)
    assert all(torch.equal(before[name], weight) for name, weight in lm.state_dict().items())


def test_weights_that_are_not_finite_are_refused() -> None:
    lm = model("llama")
    lm.model.norm.weight.data[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        layout_of(lm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_the_number_format_is_measured(dtype: torch.dtype) -> None:
    assert layout_of(model("llama").to(dtype)).layout == "packed"
    assert layout_of(model("lfm2", layer_types=["conv", "full_attention"]).to(dtype)).layout == "sdpa"


def test_a_large_model_is_tested_on_its_first_layers_of_every_kind() -> None:
    kinds = ["full_attention"] * 3 + ["conv"] + ["full_attention"] * 4
    shape = AutoConfig.for_model("lfm2", **(SIZES | {"num_hidden_layers": 8, "layer_types": kinds}))
    small = small_copy(shape, torch.float32)
    assert small.config.num_hidden_layers == 4
    assert layout_of(small, layers=4).layout == "sdpa"
    assert shape.num_hidden_layers == 8, "the configuration itself is not changed"
    windows = AutoConfig.for_model("gemma3_text", **(SIZES | {"num_hidden_layers": 12, "sliding_window": 4}))
    assert small_copy(windows, torch.float32).config.num_hidden_layers == 6, "five layers with a window, one without"
    assert small_copy(AutoConfig.for_model("llama", **SIZES), torch.float32).config.num_hidden_layers == 2


def test_a_layer_that_needs_each_prompt_before_its_completion_is_not_packed() -> None:
    lm = model("llama")
    layer, mlp = lm.model.layers[0], lm.model.layers[0].mlp

    def add_previous_token(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        states, positions = args[0], kwargs["position_ids"]
        previous = nn.functional.pad(states, (0, 0, 1, -1)) * (positions > 0)[..., None]
        return (states + previous, *args[1:]), kwargs

    layer.register_forward_pre_hook(add_previous_token, with_kwargs=True)
    inputs: list[tuple[int, ...]] = []
    mlp.register_forward_hook(lambda _, args, __: inputs.append(tuple(args[0].shape)))
    report = layout_of(lm)
    # Plain packed rows would be right, since a sequence begins at position 0.
    tokens = sequences(9, 30, 14, 5)
    logprobs, _ = Policy(lm)(row_of(tokens), temperature=1.0, chunk=16)
    for part, each in zip(logprobs.split([9, 30, 14, 5]), tokens, strict=True):
        use_attention(lm, "eager")
        torch.testing.assert_close(part[1:], alone(lm, each), atol=1e-4, rtol=1e-4)
    assert report.layout == "sdpa"


def test_the_copy_of_a_large_model_has_a_small_vocabulary() -> None:
    words = SIZES | {"vocab_size": 150_000, "pad_token_id": 149_999, "eos_token_id": [149_998, 149_997]}
    small = small_copy(AutoConfig.for_model("llama", **words), torch.float32)
    assert small.get_input_embeddings().weight.shape == (2048, 32)
    assert layout_of(small, layers=2).layout == "packed"


@pytest.mark.parametrize("window", [1, 5, 2000])
def test_a_window_is_kept_over_pieces_of_the_queries(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.model.packed_attention.QUERIES", 16)
    q, k, v = torch.randn(3, 1, 2, 60, 4, generator=torch.Generator().manual_seed(0))
    row = RowLayout.of([37, 23], torch.device("cpu"))

    def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < window)

    keys = PackedMask(row, visible)
    out, _ = packed_attention(nn.Identity(), q, k, v, keys)
    for part in (slice(0, 37), slice(37, 60)):
        n = part.stop - part.start
        where = torch.arange(n)
        mask = visible(where, where, where[:, None], where[None])
        expected = nn.functional.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part], mask)
        torch.testing.assert_close(out[:, part], expected.transpose(1, 2))
    first = next(i for i, block in enumerate(row.blocks) if block.keys.shape[1] == 37)
    assert (keys.pieces(first)[0][2] is None) == (window == 2000), "a window that never bites costs nothing"
    if window == 5:
        assert [piece[1] for piece in keys.pieces(first)] == [slice(0, 16), slice(12, 32), slice(28, 37)]


@pytest.mark.parametrize("asked", [{"position_bias": torch.zeros(1)}, {"is_causal": False}, {"cache": object()}])
def test_attention_that_is_not_understood_is_refused(asked: dict[str, object]) -> None:
    q = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match=next(iter(asked))):
        packed_attention(nn.Identity(), q, q, q, PackedMask(RowLayout.of([4], torch.device("cpu"))), **asked)  # type: ignore[arg-type]


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
ROTARY: dict[str, dict[str, Any]] = {
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 16, "rope_parameters": LONG},
    "llama": {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("family", ROTARY)
def test_rotary_factors_do_not_depend_on_the_lengths_in_a_row(family: str) -> None:
    def fresh(longest: int | None = None) -> Any:
        lm = model(family, **copy.deepcopy(ROTARY[family]))
        if longest:
            fix_rotary_length(lm, longest)
        return lm

    tokens = sequences(9, 30, 14, 5)
    with pytest.raises(AssertionError):
        compare(Policy(lm := fresh()), lm, tokens)
    for longest in (12, 64) if family == "phi3" else (12, 16):
        lm = fresh(longest)
        compare(Policy(lm), lm, [x for x in tokens if len(x) <= longest])
    if family == "phi3":
        # The factors are those of transformers on this side of the bound.
        torch.testing.assert_close(alone(fresh(64), tokens[1]), alone(fresh(), tokens[1]))
        torch.testing.assert_close(alone(fresh(12), tokens[0]), alone(fresh(), tokens[0]))
    else:
        torch.testing.assert_close(alone(fresh(16), tokens[0]), alone(fresh(), tokens[0]))
        with pytest.raises(InputError, match="for 16 tokens only"):
            fresh(17)


def compare(policy: Policy, lm: Any, tokens: list[Tensor]) -> None:
    logprobs, _ = policy(row_of(tokens), temperature=1.0, chunk=8)
    use_attention(lm, "sdpa")
    for got, x in zip(logprobs.split([len(x) for x in tokens]), tokens, strict=True):
        torch.testing.assert_close(got[1:], alone(lm, x), atol=2e-5, rtol=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Config]:
    """A configuration of a run whose model has these settings."""

    def make(family: str, *overrides: str, **settings: object) -> Config:
        model(family, vocab_size=40, **settings).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained("configs/models/countdown-0.5m").save_pretrained(tmp_path)
        return load_config([DEMO], [f"model.path={tmp_path}", *overrides]).config

    return make


def test_the_test_reads_the_weights_or_a_copy_or_nothing(
    folder: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder("llama")
    assert "on the loaded weights: a packed row equals each sequence alone to" in learner_in_words(config)
    monkeypatch.setattr("learner.model.loading.LARGE", 1000)
    assert "on a random copy with 2 layers" in learner_in_words(config)
    config.model.self_test = "full"
    assert "on the loaded weights" in learner_in_words(config)
    config.model.self_test = "off"
    assert learner_in_words(config) == "self-test of the learner: off (model.self_test)"
    assert self_test(config, torch.float32, torch.device("cpu")) is None


def test_shared_rows_need_a_model_that_can_be_packed(folder: Callable[..., Config]) -> None:
    config = folder("lfm2", layer_types=["conv", "full_attention"])
    assert "Lfm2ShortConv" in learner_in_words(config)
    config.learner.sequence_parallel = config.learner.ranks = 2
    with pytest.raises(InputError, match=r"learner\.sequence_parallel = 2 shares packed rows.*Lfm2ShortConv"):
        learner_in_words(config)


@pytest.mark.parametrize("damage", ["cut", "missing", "lacking"])
def test_weights_that_are_not_all_there_are_refused(damage: str, folder: Callable[..., Config]) -> None:
    from safetensors.torch import load_file, save_file

    config = folder("llama")
    file = Path(config.model.path, "model.safetensors")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        tensors = load_file(file)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"model.path = {config.model.path}"):
        load_language_model(config.model.path, torch.float32, trust_remote_code=False)

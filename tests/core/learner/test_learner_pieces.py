"""Parts of the learner that need no process group."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from launch.run.preflight import check_model
from learner.deepspeed_engine import deepspeed_config
from learner.model.loading import load_language_model
from learner.model.packed_attention import PackedMask, RowLayout, packed_attention
from learner.model.policy import Policy
from learner.update.loss import lag_sums, microbatch_loss
from learner.update.schedule import learning_rate
from maxpo.batches.packing import own_part, pack
from maxpo.config import AlgorithmConfig, LearnerConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from tests.fakes import sample


def test_learning_rate_by_hand() -> None:
    def rates(schedule: Literal["constant", "linear", "cosine"], warmup: int = 2) -> list[float]:
        config = LearnerConfig(lr=1.0, warmup_steps=warmup, schedule=schedule)
        return [learning_rate(config, step, 6) for step in range(6)]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1]
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4])
    assert rates("constant", warmup=0) == [1.0] * 6


def test_packed_attention_is_attention_of_each_sequence_alone() -> None:
    lengths = [1, 7, 2, 33, 8, 9, 1, 16]
    total = sum(lengths)
    q = torch.randn(1, 4, total, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    k, v = torch.randn(2, 1, 2, total, 8, generator=torch.Generator().manual_seed(1))
    row = RowLayout.of(lengths, torch.device("cpu"))
    out, _ = packed_attention(torch.nn.Identity(), q, k, v, PackedMask(row), scaling=0.3)
    start = 0
    for n in lengths:
        part = slice(start, start + n)
        alone = F.scaled_dot_product_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], is_causal=True, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(out[:, part], alone.transpose(1, 2))
        start += n
    # No gradient from one sequence into another.
    (grad,) = torch.autograd.grad(out[:, 1:8].sum(), q)
    assert float(grad[:, :, 1:8].abs().sum()) > 0
    assert float(grad[:, :, 8:].abs().sum()) == float(grad[:, :, :1].abs().sum()) == 0
    # Padding at most doubles the work, whatever the mixture.
    assert sum(block.keys.numel() for block in row.blocks) <= 2 * total


@pytest.mark.parametrize("masked", [1 << 24, 0])
@pytest.mark.parametrize("window", [None, 5])
def test_completions_see_the_prompt_that_they_share(
    masked: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.model.packed_attention.MASKED", masked)
    lengths, shared = [9, 12, 3, 10, 30, 8], [(0, 0), (0, 7), (2, 0), (0, 7), (4, 0), (0, 7)]
    row = RowLayout.of(lengths, torch.device("cpu"), shared=shared)
    assert row.kept is not None and row.places is not None
    assert len(row.kept) == 9 + 5 + 3 + 3 + 30 + 1
    q, k, v = torch.randn(3, 1, 2, len(row.kept), 8, generator=torch.Generator().manual_seed(0))

    def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < (window or 1000))

    out, _ = packed_attention(torch.nn.Identity(), q, k, v, PackedMask(row, visible))
    for places in row.places.split(lengths):
        position = torch.arange(len(places))
        mask = visible(position, position, position[:, None], position)
        alone = F.scaled_dot_product_attention(q[:, :, places], k[:, :, places], v[:, :, places], mask)
        torch.testing.assert_close(out[:, places], alone.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_16_bits_loses_nothing_but_the_rounding_of_its_output(dtype: torch.dtype) -> None:
    q, k, v = (4 * torch.randn(3, 1, 2, 20, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    mask = PackedMask(RowLayout.of([20], torch.device("cpu")))
    out, _ = packed_attention(torch.nn.Identity(), q, k, v, mask)
    exact, _ = packed_attention(torch.nn.Identity(), q.float(), k.float(), v.float(), mask)
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_log_probabilities_of_packed_rows_are_those_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads))
    for parameter in model.parameters():  # biases of queries and norms of heads too, which start as 0 and 1
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    names = " ".join(name for name, _ in model.named_parameters())
    assert ("q_proj.bias" in names, "q_norm.weight" in names) == (family == "qwen2", family == "qwen3")

    prompts = torch.randint(50, (2, 6)).tolist()
    samples = [
        sample(prompts[which] + torch.randint(50, (length,)).tolist(), prompt=6, index=index)
        for index, (which, length) in enumerate([(0, 5), (1, 17), (1, 3), (0, 9), (1, 1), (1, 12)])
    ]
    row = pack(samples, torch.ones(1, 6), lambda sample: 1.0)
    assert [length for _, length in row.shared] == [0, 0, 6, 6, 6, 6]
    packed = Policy(load_language_model(str(tmp_path), torch.float32, trust_remote_code=False))
    computed: list[int] = []
    layer = packed.lm.get_submodule("model.layers.0.mlp")
    layer.register_forward_hook(lambda _, __, output: computed.append(output.shape[1]))
    got, _ = packed(row, temperature=0.7, chunk=8)
    assert computed == [12 + 5 + 17 + 3 + 9 + 1 + 12], "each prompt goes through the layers once"
    gradients = torch.autograd.grad(got.square().sum(), list(packed.parameters()))
    apart, _ = packed(replace(row, shared=()), temperature=0.7, chunk=8)
    for one, other in zip(gradients, torch.autograd.grad(apart.square().sum(), list(packed.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    alone: list[torch.Tensor] = []
    for each in samples:
        tokens = torch.tensor(each.token_ids).long()
        logprobs = (model(tokens[None]).logits[0, :-1] / 0.7).log_softmax(-1)
        alone.append(F.pad(logprobs.gather(1, tokens[1:, None])[:, 0], (1, 0)) * torch.tensor(each.loss_mask))
    torch.testing.assert_close(got, torch.cat(alone), atol=2e-5, rtol=2e-5)


def test_the_users_deepspeed_settings_lie_below_those_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 1, "reduce_bucket_size": 7, "compute_grad_norm": False},
                "wall_clock_breakdown": True,
                "gradient_clipping": 9.0,
            }
        )
    )
    merged = deepspeed_config(LearnerConfig(lr=1.0, zero_stage=3, deepspeed=str(file), grad_clip=0.5), world_size=4)
    assert merged["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 7, "compute_grad_norm": True}
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_clipping"] == 0.5
    assert merged["train_batch_size"] == 4


class _Alone:
    """A sequence group of one rank: nothing to exchange."""

    size, rank = 1, 0

    def span(self, tokens: int) -> tuple[int, int]:
        return 0, tokens

    def gather_tokens(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_shared_row_needs_attention_in_every_layer() -> None:
    lm: Any = load_language_model("configs/models/countdown-0.5m", torch.float32, trust_remote_code=False)
    row = pack([sample([5, 6, 7])], torch.ones(1, 1), lambda sample: 1.0, multiple=2)
    assert row.lengths == (3, 1)
    shared = Policy(lm, _Alone())  # type: ignore[arg-type]
    logprobs, _ = shared(row, temperature=1.0, chunk=8)
    assert torch.equal(logprobs, Policy(lm)(row, temperature=1.0, chunk=8)[0])
    lm.config.num_hidden_layers += 1  # as if there were one that mixes tokens in another way
    with pytest.raises(ValueError, match=r"learner.sequence_parallel = 1: 3 of the model's 4 layers are attention"):
        shared(row, temperature=1.0, chunk=8)


def test_the_parts_of_a_row_have_each_token_once() -> None:
    row = pack([sample([4] * 7)], torch.ones(1, 1), lambda sample: 1.0, multiple=2)
    parts = [own_part(row, part, 2).loss_mask.tolist() for part in range(2)]
    assert parts == [[False, True, True, True, True, False, False, False], [False] * 5 + [True, True, False]]
    assert torch.equal(own_part(row, 0, 1).loss_mask, row.loss_mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, "= 4 does not divide the 2 key and value heads"),
        ({"num_attention_heads": 2, "num_key_value_heads": 2}, "= 4 does not divide the 2 attention heads"),
    ],
)
def test_models_that_cannot_share_rows_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    demo = Path("configs/models/countdown-0.5m")
    for file in demo.glob("*token*"):
        shutil.copy(file, tmp_path)
    settings = json.loads((demo / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    overrides = [f"model.path={tmp_path}", "learner.ranks=4", "learner.sequence_parallel=4"]
    with pytest.raises(InputError, match=message):
        check_model(load_config([Path("configs/presets/demo.yaml")], overrides).config)


@pytest.mark.parametrize("impossible", [-math.inf, math.inf, -1e4])
def test_a_token_that_one_side_thinks_impossible_gives_a_large_finite_mismatch(impossible: float) -> None:
    row = pack([sample([5, 6, 7], logprobs=[0.0, impossible, -1.0])], torch.ones(1, 1), lambda sample: 1.0)
    logprobs = torch.tensor([0.0, -1.0, -1.0], requires_grad=True)
    _, sums = microbatch_loss(
        logprobs, torch.zeros(3), row, AlgorithmConfig(tis_cap=None), old_logprobs=None, ref_logprobs=None
    )
    assert 40 < float(sums["mismatch_kl"]) < 1e30


def test_tokens_that_are_not_trusted_have_no_gradient_and_count_in_the_denominators() -> None:
    """The sampler gave token 1 a third of the probability; the second sequence is far off as a whole."""
    first = sample([1, 2, 3, 4], prompt=1, logprobs=[0, -1.0 - math.log(3), -1.0, -1.0])
    second = replace(sample([1, 2, 3], prompt=1, logprobs=[0, -1.0 - math.log(1.8), -1.0 - math.log(1.8)]), index=1)
    row = pack([first, second], torch.ones(1, 2), lambda sample: 0.5)

    def gradient(**settings: Any) -> tuple[list[float], float]:
        logprobs = torch.tensor([0, -1.0, -1.0, -1.0, 0, -1.0, -1.0], requires_grad=True)
        given = AlgorithmConfig(tis_cap=None, **settings)
        loss, sums = microbatch_loss(logprobs, torch.zeros(7), row, given, old_logprobs=None, ref_logprobs=None)
        (found,) = torch.autograd.grad(loss, logprobs)
        return found.tolist(), float(sums.get("masked", torch.tensor(-1.0)))

    everything = [0.0, -0.5, -0.5, -0.5, 0.0, -0.5, -0.5]
    assert gradient() == (everything, -1.0)
    assert gradient(token_mask=[0.5, 2.0]) == ([0.0, 0.0, *everything[2:]], 1.0)
    assert gradient(sequence_mask=[0.5, 1.7]) == ([*everything[:4], 0.0, 0.0, 0.0], 2.0)
    assert gradient(sequence_mask=[0.5, 3.1], sequence_mask_ratio="product") == ([*everything[:4], 0.0, 0.0, 0.0], 2.0)


def test_the_mismatch_by_age_of_the_tokens() -> None:
    """Two sequences after prompts of two tokens: versions 5 and 7 in the first one, 6 in the second; now it is 7."""
    first = replace(sample([1, 2, 3, 4, 5], prompt=2, logprobs=[0, 0, -1.0, -1.0, -1.0]), versions=((5, 2), (7, 4)))
    second = replace(sample([1, 2, 3], prompt=2, logprobs=[0, 0, -2.0]), versions=((6, 2),))
    row = pack([first, second], torch.ones(1, 1), lambda sample: 1.0, version=7)
    assert row.lags is not None
    assert row.lags.tolist() == [0, 0, 2, 2, 0, 0, 0, 1]
    logprobs = torch.tensor([0, 0, -1.1, -1.2, -1.3, 0, 0, -2.4], requires_grad=True)
    _, sums = microbatch_loss(
        logprobs, torch.zeros(8), row, AlgorithmConfig(), old_logprobs=None, ref_logprobs=None, lags=3
    )
    k3 = {gap: math.expm1(-gap) + gap for gap in (0.1, 0.2, 0.3, 0.4)}
    found = {name: float(sums[name]) for name in lag_sums(3)}
    assert [found[f"tokens_lag_{lag}"] for lag in range(3)] == [1, 1, 2]
    wanted = [k3[0.3], k3[0.4], k3[0.1] + k3[0.2]]
    assert [found[f"mismatch_kl_lag_{lag}"] for lag in range(3)] == pytest.approx(wanted, rel=1e-4)
    assert sum(wanted) == pytest.approx(float(sums["mismatch_kl"]), rel=1e-4)

"""Weights go out under the names of the model's files, whatever transformers calls them in memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.tiny_models import make
from learner.model.loading import load_language_model
from learner.model.policy import Policy
from learner.state.policy_folder import policy_shards, write_policy
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.config import LoraConfig
from maxpo.weights.buckets import cut_into_buckets

MODELS = ["llama", "qwen3_moe", "mixtral", "glm4_moe", "granitemoe", "gpt_oss"]


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make(request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fake_engine(folder: Path) -> Any:
    policy = Policy(load_language_model(str(folder), torch.float32, trust_remote_code=False))
    return SimpleNamespace(
        module=policy, full_parameters=lambda _: nullcontext(), loaded_dtype=lambda tensor: tensor.dtype
    )


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("size", [1000, 70_000, 1 << 30])
def test_a_sync_and_an_export_hold_the_tensors_of_the_files(folder: Path, size: int) -> None:
    original, engine = load_file(folder / "model.safetensors"), fake_engine(folder)
    source = ParameterSource(engine, torch.float32, size, keep=True)
    buckets = list(source.buckets())
    assert_same({meta.name: tensor for bucket in buckets for meta, tensor in bucket}, original)
    # The receiver cuts the buckets by the announced names and sizes.
    assert [[m for m, _ in b] for b in buckets] == list(cut_into_buckets(source.metas, size))
    source.begin()
    assert_same(dict(source), original)  # as vLLM's trainer engines read
    assert source.digests.keys() == original.keys()
    shards = list(policy_shards(engine, rank=0, shard_bytes=size))
    assert_same({name: tensor for _, tensors in shards for name, tensor in tensors.items()}, original)
    assert sum(len(tensors) for _, tensors in shards) == len(original)


def test_ranks_that_do_not_send_go_through_the_same_buckets(folder: Path) -> None:
    engine = fake_engine(folder)
    silent = list(ParameterSource(engine, torch.float32, 1000, keep=False).buckets())
    assert silent == [[]] * len(list(ParameterSource(engine, torch.float32, 1000, keep=True).buckets()))
    assert not any(tensors for _, tensors in policy_shards(engine, rank=1, shard_bytes=1000))


def test_an_exported_folder_is_the_original(folder: Path, tmp_path: Path) -> None:
    lm = load_language_model(str(folder), torch.float32, trust_remote_code=False)
    write_policy(lm, str(folder), tmp_path / "out", LoraConfig())
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors"))

"""A buffer of a router under real DeepSpeed, at every ZeRO stage, with and without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maxpo.config import LoraConfig
from tests.integration.conftest import Learned, Rounds
from tests.integration.learner_ranks import job
from tests.integration.test_gradients import make_batch
from tests.integration.test_training_state import contents
from tests.routers import BIAS, write_router_model

LAYOUTS = [(0, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16"), (3, "float32")]
SHIFT = 1.25
ADAPTER = LoraConfig(rank=2, targets=["q_proj", "v_proj"])


def rank_jobs(folder: Path) -> Rounds:
    model = str(write_router_model("glm4_moe", folder / "model"))

    def made(stage: int, dtype: str, batches: list[Any], **keys: Any) -> dict[str, Any]:
        lora = keys.pop("lora", LoraConfig())
        settings = {"aggregation": "constant", "budget": 100, "stage": stage, "dtype": dtype, "lora": lora}
        return job(batches, **settings) | {"model": model} | keys

    batch, jobs = make_batch(0), {}
    for stage, dtype in LAYOUTS:
        own = str(folder / f"{stage}-{dtype}")
        jobs[f"{own} saved"] = made(stage, dtype, [batch], shift=SHIFT, save=own)
        jobs[f"{own} loaded"] = made(stage, dtype, [], load=own, policy=f"{own}-policy", save=f"{own}-again")
        jobs[f"{own} at once"] = made(stage, dtype, [], policy=f"{own}-start")
    for stage in (2, 3):
        jobs[f"adapter {stage}"] = made(
            stage, "bfloat16", [batch], lora=ADAPTER, shift=SHIFT, policy=str(folder / f"adapter-{stage}")
        )
    return {}, jobs, {}


@pytest.fixture(scope="module")
def folder(learned: Learned) -> Path:
    return learned.folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_changed_buffer_is_restored_exported_and_sent(layout: tuple[int, str], folder: Path) -> None:
    own = "{}-{}".format(*layout)
    start = load_file(folder / "model" / "model.safetensors")
    want = start[BIAS] + SHIFT
    assert torch.equal(contents(folder / own)[0][f"{BIAS}/buffer"], want)
    assert torch.equal(contents(folder / f"{own}-again")[0][f"{BIAS}/buffer"], want)
    policy = load_file(folder / f"{own}-policy" / "model.safetensors")
    sync = load_file(folder / f"{own}-policy" / "sync.safetensors")
    assert policy.keys() == sync.keys()
    assert policy[BIAS].dtype == sync[BIAS].dtype == torch.float32
    assert torch.equal(policy[BIAS], want)
    assert torch.equal(sync[BIAS], want)
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in sync.items() if name != BIAS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_export_without_a_step_is_the_model(layout: tuple[int, str], folder: Path) -> None:
    from learner.model.loading import load_language_model

    def state(path: Path) -> dict[str, torch.Tensor]:
        return load_language_model(str(path), getattr(torch, layout[1]), trust_remote_code=False).state_dict()

    exported, start = state(folder / "{}-{}-start".format(*layout)), state(folder / "model")
    assert exported.keys() == start.keys()
    for name, tensor in start.items():
        assert torch.equal(exported[name], tensor), name
        assert exported[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("stage", [2, 3])
def test_buffers_beside_an_adapter(stage: int, folder: Path) -> None:
    policy = load_file(folder / f"adapter-{stage}" / "model.safetensors")
    start = load_file(folder / "model" / "model.safetensors")
    assert torch.equal(policy[BIAS], start[BIAS] + SHIFT)
    assert not any(".base_layer." in name or ".lora_" in name for name in policy)

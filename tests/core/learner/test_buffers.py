"""Persistent buffers go where the parameters go: to the engines, into exports and into checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from launch.run import exporting
from learner.model.loading import load_language_model, load_policy
from learner.model.lora import add_adapter, base_digest, check_base
from learner.model.parameters import buffers_by_name, policy_weights, trained_parameters
from learner.model.policy import Policy
from learner.state.policy_folder import policy_shards, write_policy
from learner.state.training_state import TrainingState
from learner.weight_sync.sender import WeightSender
from maxpo.config import LoraConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from maxpo.types import WeightManifest
from maxpo.weights.checksum import tensor_digest
from tests.routers import BIAS, write_router_model

DEMO = Path("configs/presets/demo.yaml")
FAMILIES = ["glm4_moe", "deepseek_v3"]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_language_model(str(folder), dtype, trust_remote_code=False)


def logprobs(folder: Path, dtype: torch.dtype) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits.float().log_softmax(-1)


def fake_engine(module: nn.Module, stage: int = 0) -> Any:
    """A training engine without DeepSpeed."""
    adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    return SimpleNamespace(
        module=module,
        stage=stage,
        deepspeed=None,
        optimizer=adam,
        full_parameters=lambda parameters: nullcontext(),
        loaded_dtype=lambda tensor: tensor.dtype,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_router_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def glm(tmp_path: Path) -> Path:
    return write_router_model("glm4_moe", tmp_path / "model")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank, without a process group."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)


class Parts(nn.Module):
    """Buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Buffer(torch.full((3,), 2.0, dtype=torch.float64))
        self.mask = nn.Buffer(torch.ones(3, dtype=torch.bool))
        self.scratch = nn.Buffer(torch.zeros(3), persistent=False)
        self.half = nn.Linear(3, 1, dtype=torch.bfloat16)


def test_which_buffers_there_are() -> None:
    parts = Parts()
    assert set(buffers_by_name(parts)) == set(parts.state_dict()) - set(dict(parts.named_parameters()))
    assert set(policy_weights(parts)) == set(parts.state_dict())
    assert [name for name in buffers_by_name(parts) if "norm" not in name] == ["scale", "mask"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_without_a_step_is_the_model(folder: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = load(folder, dtype)
    write_policy(lm, str(folder), tmp_path / "whole", LoraConfig())
    shards = policy_shards(fake_engine(Policy(lm)), rank=0, shard_bytes=5_000)
    write_policy(lm, str(folder), tmp_path / "shards", LoraConfig(), shards)
    assert len(list((tmp_path / "shards").glob("model-*"))) > 1
    for written in ("whole", "shards"):
        again = load(tmp_path / written, dtype)
        assert again.state_dict().keys() == lm.state_dict().keys()
        for name, tensor in lm.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
            assert again.state_dict()[name].dtype == tensor.dtype == (torch.float32 if name == BIAS else dtype), name
        assert torch.equal(logprobs(tmp_path / written, dtype), logprobs(folder, dtype))
    stored = load_file(tmp_path / "whole" / "model.safetensors")[BIAS]
    assert torch.equal(stored, load_file(folder / "model.safetensors")[BIAS])  # in bfloat16 too, not a bit is lost


def test_an_export_keeps_the_number_format_that_each_parameter_was_loaded_in(glm: Path, tmp_path: Path) -> None:
    lm = load(glm, torch.bfloat16)
    engine = fake_engine(Policy(lm))
    head = lm.lm_head.weight
    engine.loaded_dtype = lambda tensor: torch.float32 if tensor is head else tensor.dtype
    write_policy(lm, str(glm), tmp_path / "out", LoraConfig(), policy_shards(engine, rank=0))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name, tensor in written.items() if tensor.dtype == torch.float32} == {"lm_head.weight", BIAS}


class _Transport:
    """A transport that only remembers."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.sent: dict[str, Tensor] = {}

    def send_weights(self) -> None:
        self.sent = dict(self.source)


def publish(module: nn.Module) -> tuple[Iterator[WeightManifest], _Transport]:
    """Manifests of one sync after the other in bfloat16, and the transport of their weights."""
    sender = WeightSender(
        fake_engine(module),
        backend="gloo",
        dtype=torch.bfloat16,
        bucket_bytes=1000,
        timeout_s=1.0,
        rank=0,
        host="",
    )
    transport = _Transport(sender._source)
    sender._connect = lambda: transport
    return (manifest for version in range(3) if (manifest := sender.publish(version, []))), transport


def test_a_sync_has_every_buffer_with_its_checksum(glm: Path) -> None:
    lm = load(glm)
    manifests, transport = publish(Policy(lm))
    manifest = next(manifests)
    assert set(manifest.names) == set(load_file(glm / "model.safetensors")) == set(transport.sent)
    bias = lm.get_buffer(BIAS)
    at = manifest.names.index(BIAS)
    assert (manifest.dtypes[at], manifest.shapes[at]) == ("float32", tuple(bias.shape))
    assert manifest.digests[at] == int(tensor_digest(bias))
    assert torch.equal(transport.sent[BIAS], bias)
    assert {manifest.dtypes[i] for i in range(len(manifest.names)) if i != at} == {"bfloat16"}


def test_buffers_of_all_kinds_in_a_sync() -> None:
    parts = Parts()
    manifests, transport = publish(parts)
    manifest = next(manifests)
    assert set(manifest.names) == set(parts.state_dict())
    # Every tensor starts at a multiple of its width.
    assert (manifest.names[0], manifest.names[-1]) == ("scale", "mask")
    widths = [getattr(torch, dtype).itemsize for dtype in manifest.dtypes]
    assert widths == sorted(widths, reverse=True)
    parts.scale = nn.Buffer(torch.full((3,), 5.0, dtype=torch.float64))  # the module puts another tensor there
    assert int(tensor_digest(parts.scale)) == next(manifests).digests[0]
    assert transport.sent["scale"].tolist() == [5.0] * 3


def test_a_model_whose_files_lack_a_buffer_is_refused(glm: Path) -> None:
    weights = load_file(glm / "model.safetensors")
    del weights[BIAS]
    save_file(weights, glm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"1 weights of the model are not in the files, first {BIAS}"):
        load(glm)


def train(engine: Any, module: Any) -> None:
    """A step and a changed buffer."""
    for parameter in engine.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    engine.optimizer.step()
    module.get_buffer(BIAS).add_(1.25)


@pytest.mark.usefixtures("alone")
def test_a_training_state_restores_a_changed_buffer(glm: Path, tmp_path: Path) -> None:
    lm = load(glm)
    engine = fake_engine(lm)
    train(engine, lm)
    changed = lm.get_buffer(BIAS).clone()
    (tmp_path / "state").mkdir()
    TrainingState(engine, trained_parameters(lm)).copy({"optimizer_steps": 1})(tmp_path / "state")
    lm.get_buffer(BIAS).zero_()

    other = load(glm, torch.float32)
    TrainingState(fake_engine(other), trained_parameters(other)).load(tmp_path / "state")
    assert torch.equal(other.get_buffer(BIAS), changed)

    # A state of an older version has none, and the model keeps its own.
    file = tmp_path / "state" / "state-00000.safetensors"
    tensors = load_file(file)
    save_file({key: tensor for key, tensor in tensors.items() if not key.endswith("/buffer")}, file)
    fresh = load(glm)
    kept = fresh.get_buffer(BIAS).clone()
    TrainingState(fake_engine(fresh), trained_parameters(fresh)).load(tmp_path / "state")
    assert torch.equal(fresh.get_buffer(BIAS), kept)
    assert torch.equal(fresh.lm_head.weight, lm.lm_head.weight)

    # Other buffers are another model, which changes nothing.
    for wrong, message in (
        ({f"{BIAS}/buffer": torch.zeros(3)}, rf"{BIAS} is \(3,\) there, \(8,\) here"),
        ({"x/buffer": torch.zeros(3)}, "2 names of buffers differ, first model.layers.1"),
    ):
        save_file({key: t for key, t in tensors.items() if not key.endswith("/buffer")} | wrong, file)
        refused = load(glm)
        before = refused.lm_head.weight.clone()
        with pytest.raises(ValueError, match=f"is of another model: {message}"):
            TrainingState(fake_engine(refused), trained_parameters(refused)).load(tmp_path / "state")
        assert torch.equal(refused.lm_head.weight, before)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.usefixtures("alone")
def test_export_takes_the_buffers_of_the_checkpoint(
    rank: int, glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        [DEMO], [f"model.path={glm}", f"learner.lora.rank={rank}", "learner.lora.targets=[q_proj]"]
    ).config
    loaded = load_policy(config, None, "packed")
    lm = loaded.policy.lm
    (tmp_path / "step" / "learner").mkdir(parents=True)
    train(fake_engine(lm), lm)
    state = TrainingState(fake_engine(loaded.policy), trained_parameters(loaded.policy))
    state.copy({"optimizer_steps": 1, "base": loaded.base})(tmp_path / "step" / "learner")
    good = SimpleNamespace(newest_good=lambda: (tmp_path / "step", []))
    monkeypatch.setattr(exporting, "Checkpoints", lambda folder: good)
    exporting.export_checkpoint(config, tmp_path, None, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written[BIAS], lm.get_buffer(BIAS))
    assert not torch.equal(written[BIAS], load_file(glm / "model.safetensors")[BIAS])
    assert written.keys() == load_file(glm / "model.safetensors").keys()


def test_the_checksum_of_a_base_covers_its_buffers(glm: Path) -> None:
    lm = load(glm)
    before = base_digest(lm)
    older = before.rpartition(":")[0]  # without buffers
    with torch.no_grad():
        lm.get_buffer(BIAS)[2] += 1e-3
    with pytest.raises(InputError, match="its weights are not those"):
        check_base(before, base_digest(lm), str(glm))
    check_base(older, base_digest(lm), str(glm))
    with torch.no_grad():
        lm.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match="its weights are not those"):
        check_base(older, base_digest(lm), str(glm))
    check_base(before, base_digest(load(glm, torch.bfloat16)), str(glm))


def test_an_adapter_leaves_the_names_of_buffers() -> None:
    lm = load(Path("configs/models/countdown-0.5m"))
    lm.model.layers[0].mlp.up_proj.zeros = nn.Buffer(torch.zeros(3))
    before = set(policy_weights(lm))
    add_adapter(lm, LoraConfig(rank=2), seed=0)
    assert set(policy_weights(lm)) == before
    assert set(buffers_by_name(lm)) == {"model.layers.0.mlp.up_proj.zeros"}


@pytest.mark.usefixtures("alone")
def test_a_state_from_before_the_first_step_clears_the_moments(glm: Path, tmp_path: Path) -> None:
    lm = load(glm)
    engine = fake_engine(lm)
    state = TrainingState(engine, trained_parameters(lm))
    state.copy({"optimizer_steps": 0})(tmp_path)
    train(engine, lm)
    state.load(tmp_path)
    train(engine, lm)
    fresh = load(glm)
    train(fake_engine(fresh), fresh)
    assert torch.equal(lm.lm_head.weight, fresh.lm_head.weight)

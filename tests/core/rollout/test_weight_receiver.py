"""A reload of an engine's model leaves no tensor uninitialised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("vllm")

from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from maxpo.weights.buffers import Buffers
from maxpo.weights.checksum import bytes_digest
from rollout.vllm_engine.weight_receiver import BUFFERS, GlooReceiver, GlooUpdate

NEW = {"layer.weight": torch.tensor([5.0, 6.0]), "layer.shift": torch.tensor([7.0])}
SCALE = torch.tensor([0.5, 0.25])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.shift = nn.Parameter(torch.ones(1))
        self.register_buffer("scale", SCALE.clone())


class Model(nn.Module):
    copies = False
    """True to copy weights without the loaders of vLLM."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = Layer(), Layer()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        loaded: set[str] = set()
        for name, weight in weights:
            loader = getattr(tensors[name], "weight_loader", default_weight_loader)
            if self.copies:
                tensors[name].data.copy_(weight)
            else:
                loader(tensors[name], weight)
            loaded.add(name)
        return loaded


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Sent:
    """A process group whose broadcasts give the bytes of a tensor each."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = iter(weights.values())

    def broadcast(self, buffer: Tensor, root: int) -> Any:
        weight = next(self._weights)
        buffer[: weight.nbytes] = weight.view(torch.uint8)
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def receiver(nan_memory: None) -> Any:
    return receiver_of(Model())


def receiver_of(model: nn.Module) -> Any:
    """A receiver of buckets of one tensor each."""
    made: Any = GlooReceiver.__new__(GlooReceiver)
    made.model, made.model_config, made.bucket_bytes, made.memory = model, None, 1, Buffers(1, BUFFERS)
    record_metadata_for_reloading(made.model)
    return made


def sync(receiver: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    receiver.group = Sent(weights)
    receiver.start_weight_update()
    shapes = [list(weight.shape) for weight in weights.values()]
    receiver.receive_weights(GlooUpdate(names=list(weights), dtype_names=["float32"] * len(weights), shapes=shapes))
    receiver.finish_weight_update()
    return dict(receiver.model.state_dict())


def test_a_buffer_that_is_not_sent_keeps_its_value(receiver: Any) -> None:
    for factor in (1, 2):
        weights = {name: factor * weight for name, weight in NEW.items()}
        state = sync(receiver, weights)
        assert torch.equal(state["layer.scale"], SCALE)
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())


def test_a_buffer_that_is_sent_is_taken(receiver: Any) -> None:
    assert torch.equal(sync(receiver, {**NEW, "layer.scale": 3 * SCALE})["layer.scale"], 3 * SCALE)


def test_a_layer_that_is_not_sent_keeps_its_weights(receiver: Any) -> None:
    state = sync(receiver, NEW)
    assert state["other.weight"].tolist() == [1, 1]
    assert torch.equal(state["other.scale"], SCALE)


def test_a_sync_without_a_parameter_of_a_layer_is_refused(receiver: Any) -> None:
    with pytest.raises(RuntimeError, match=r"left out weights that the engine has: layer\.shift$"):
        sync(receiver, {"layer.weight": NEW["layer.weight"]})


def test_weights_that_a_model_copies_itself_arrive(receiver: Any) -> None:
    receiver.model.copies = True
    for factor in (1, 2):
        weights = {name: factor * weight for name, weight in NEW.items()}
        state = sync(receiver, weights)
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())
        assert torch.equal(state["layer.scale"], SCALE)


class Wide(nn.Module):
    """A layer that is complete only after many buckets, and a list that keeps what was loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({str(i): nn.Parameter(torch.zeros(2)) for i in range(3 * BUFFERS)})
        self.kept: list[Tensor] = []
        self.keeps = False

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = set()
        for name, weight in weights:
            part = self.get_parameter(name)
            getattr(part, "weight_loader", default_weight_loader)(part, weight)
            self.kept += [weight] * self.keeps
            loaded.add(name)
        return loaded


@pytest.mark.parametrize("keeps", [False, True])
def test_no_buffer_is_written_while_the_model_holds_a_view_of_it(nan_memory: None, keeps: bool) -> None:
    receiver, names = receiver_of(Wide()), [f"parts.{i}" for i in range(3 * BUFFERS)]
    receiver.model.keeps = keeps
    syncs = [{n: torch.tensor([float(i), sync]) for i, n in enumerate(names)} for sync in range(3)]
    for weights in syncs:
        state = sync(receiver, weights)
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())
        assert receiver.digests == {name: bytes_digest(weight) for name, weight in weights.items()}
    assert [t.tolist() for t in receiver.model.kept] == [w.tolist() for s in syncs for w in s.values()] * keeps

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

from rollout.vllm_engine.weight_receiver import GlooReceiver, GlooUpdate

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
        buffer.copy_(next(self._weights).view(torch.uint8))
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def receiver(nan_memory: None) -> Any:
    made: Any = GlooReceiver.__new__(GlooReceiver)
    made.model, made.model_config, made.bucket_bytes = Model(), None, 1
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

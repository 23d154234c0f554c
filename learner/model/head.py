"""The logits of a model from its last hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class Head:
    """The part of a language model behind its last hidden states, as a function.

    The model's own forward pass is run with its layers replaced by the given states. So whatever it does to its logits
    (scaling, soft-capping, a bias) is done here too, without a list of such models.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        """Find the layers and the output embedding.

        Raises:
            ValueError: the model has no such parts.
        """
        self._lm = lm
        names = {module: name for name, module in lm.named_modules()}
        first, last = (names.get(module, "") for module in (lm.get_input_embeddings(), lm.get_output_embeddings()))
        self._layers, self._embedding = first.partition(".")[0], last
        if not first or not last or self._layers == last.partition(".")[0]:
            raise ValueError(f"{type(lm).__name__} has no separate output embedding, so logits cannot be cut in chunks")

    @property
    def layers(self) -> nn.Module:
        """The part of the model that gives the last hidden states."""
        return self._lm.get_submodule(self._layers)

    def weight(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the output embedding. Under ZeRO-3, they are gathered by this access."""
        module = self._lm.get_submodule(self._embedding)
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
        return weight, bias

    def __call__(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the logits [n, V] of the states [n, H]."""
        # The head is a function of its weight, not a module: under ZeRO-3 the call of a module gathers its parameters
        # on all ranks together, but ranks may have different numbers of chunks.
        with (
            self._replaced(self._layers, _Given(states[None], self.layers)),
            self._replaced(self._embedding, _Linear(weight, bias)),
        ):
            tokens = torch.zeros(1, states.shape[0], dtype=torch.long, device=states.device)
            return type(self._lm).forward(self._lm, input_ids=tokens, use_cache=False).logits[0]

    @contextmanager
    def _replaced(self, name: str, module: nn.Module) -> Iterator[None]:
        parent, _, leaf = name.rpartition(".")
        modules = self._lm.get_submodule(parent)._modules
        original, modules[leaf] = modules[leaf], module
        try:
            yield
        finally:
            modules[leaf] = original


class _Hidden:
    """The output of a model's layers, of which nothing but the last hidden states is given."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> object:
        return (self.last_hidden_state,)[index]


class _Given(nn.Module):
    """Layers that return given hidden states."""

    def __init__(self, states: Tensor, original: nn.Module) -> None:
        super().__init__()
        self._kept = (states, original)  # in a tuple, so that torch does not look at it

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_kept"][1], name)
        # Some models call a part of their layers, such as `self.model.decoder`.
        return self if isinstance(value, nn.Module) else value

    def forward(self, *args: object, **kwargs: object) -> _Hidden:
        return _Hidden(self._kept[0])


class _Linear(nn.Module):
    """An output embedding with given weights, which are not its parameters."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._given = (weight, bias)

    @property
    def weight(self) -> Tensor:
        return self._given[0]

    @property
    def bias(self) -> Tensor | None:
        return self._given[1]

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, *self._given)

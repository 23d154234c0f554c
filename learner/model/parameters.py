"""Parameters, buffers and weights by their names in the model's files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""peft's name of an adapter without a name."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the policy: a parameter or a buffer, and the low-rank product that an adapter adds to a parameter."""

    base: Tensor
    low_rank: tuple[nn.Parameter, nn.Parameter] | None = None
    """A [rank, in] and B [out, rank]."""
    scaling: float = 0.0

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters that must be gathered before `value` and `copy`."""
        base = (self.base,) if isinstance(self.base, nn.Parameter) else ()  # no ZeRO stage shards buffers
        return (*base, *(self.low_rank or ()))

    def value(self) -> Tensor:
        """Return W itself, or W + scaling B A computed in float32 as a new tensor."""
        if self.low_rank is None:
            return self.base.detach()
        a, b = (p.detach().float() for p in self.low_rank)
        # In place, so that one float32 tensor of the size of the weight is all the memory needed.
        return (b @ a).mul_(self.scaling).add_(self.base.detach())

    def copy(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return `value` as a new tensor.

        Args:
            dtype: number format of the copy.
            device: device of the copy. None: the device of W.
        """
        return self.value().to(device=device or self.base.device, dtype=dtype, copy=self.low_rank is None)


def policy_weights(model: nn.Module) -> dict[str, Weight]:
    """Return all weights of the policy under the names of the model without an adapter.

    Persistent buffers come first, then the parameters. Tied weights appear once.
    """
    parameters = parameters_by_name(model)
    modules = {name.removeprefix("lm."): module for name, module in model.named_modules()}
    weights = {name: Weight(buffer) for name, buffer in buffers_by_name(model).items()}
    for name, parameter in parameters.items():
        layer, within, leaf = name.rpartition(".base_layer.")
        if within and leaf == "weight":
            a, b = (parameters[f"{layer}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
            owner: Any = modules[layer]
            weights[f"{layer}.weight"] = Weight(parameter, (a, b), owner.scaling[ADAPTER])
        elif within:
            weights[f"{layer}.{leaf}"] = Weight(parameter)
        elif ".lora_" not in name:
            weights[name] = Weight(parameter)
    return weights


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name: all, or those of the adapter under the names in peft's files."""
    parameters = parameters_by_name(model)
    return {re.sub(rf"(\.lora_[AB])\.{ADAPTER}\.", r"\1.", n): p for n, p in parameters.items() if p.requires_grad}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters under their Hugging Face names, without `lm.`. Tied parameters appear once."""
    return {name.removeprefix("lm."): parameter for name, parameter in model.named_parameters()}


def buffers_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers under the names of the model without an adapter.

    A module may replace a buffer by another tensor, so the result is true only for now.
    """
    return {
        name.removeprefix("lm.").replace(".base_layer.", "."): buffer
        for path, module in model.named_modules()
        if ".lora_" not in path
        for name, buffer in module.named_buffers(path, recurse=False)
        if name.rpartition(".")[2] not in module._non_persistent_buffers_set
    }


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter or buffer, gathered if ZeRO-3 has sharded the parameter."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))

"""Parameters and weights by their names in the model's files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""peft's name of an adapter that has none."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the policy: a parameter, and what an adapter adds to it."""

    base: nn.Parameter
    low_rank: tuple[nn.Parameter, nn.Parameter] | None = None
    """A [rank, in] and B [out, rank]."""
    scaling: float = 0.0

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What must be whole for `copy`."""
        return (self.base, *(self.low_rank or ()))

    def copy(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """W, or W + scaling B A computed in float32; nothing that is trained or frozen changes. None: where W is."""
        base = self.base.detach()
        if self.low_rank is None:
            return base.to(device=device or base.device, dtype=dtype, copy=True)
        a, b = (p.detach().float() for p in self.low_rank)
        # In place: a float32 tensor of the weight's size is all that this needs.
        return (b @ a).mul_(self.scaling).add_(base).to(device=device or base.device, dtype=dtype)


def policy_weights(model: nn.Module) -> dict[str, Weight]:
    """All weights of the policy under the names of the model without an adapter; a tied one appears once."""
    parameters = parameters_by_name(model)
    modules = {name.removeprefix("lm."): module for name, module in model.named_modules()}
    weights: dict[str, Weight] = {}
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
    """What the optimizer changes, by name: all parameters, or those of the adapter under peft's names in files."""
    parameters = parameters_by_name(model)
    return {re.sub(rf"(\.lora_[AB])\.{ADAPTER}\.", r"\1.", n): p for n, p in parameters.items() if p.requires_grad}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under their Hugging Face names, without the policy's prefix; a tied one appears once."""
    return {name.removeprefix("lm."): parameter for name, parameter in model.named_parameters()}


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, also while ZeRO-3 has it sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))

"""Rotary position factors that depend on the length of a sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def fix_rotary_length(model: nn.Module, longest: int) -> None:
    """Make the factors those of the engine: one choice for the run, whatever the lengths in a row. Changes the model.

    transformers chooses by the longest position that it sees in a call, so the factors of a sequence would depend on
    its neighbours in the row. vLLM chooses once: `longrope` by the longest sequence that the engine allows, `dynamic`
    by the longest that the model allows.

    Args:
        model: a language model.
        longest: number of tokens of the longest prompt and completion of the run.
    """
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        kinds = set(types.values()) if isinstance(types, dict) else {types}
        if "longrope" in kinds:
            module.forward = partial(_as_if, module.forward, longest)  # pyright: ignore[reportAttributeAccessIssue]
        elif any("dynamic" in str(kind) for kind in kinds):
            most: Any = getattr(module, "max_seq_len_cached", longest)
            factor = (getattr(module, "config", None) and module.config.rope_parameters.get("factor")) or 1.0  # type: ignore[union-attr]
            module.forward = partial(_as_if, module.forward, int(most * factor))  # pyright: ignore[reportAttributeAccessIssue]


def _as_if(forward: Any, longest: int, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call the forward pass of a rotary embedding as for a sequence of `longest` tokens."""
    last = torch.full_like(position_ids[:, :1], longest - 1)
    factors = forward(x, torch.cat([position_ids, last], dim=1), *args, **kwargs)
    if isinstance(factors, Tensor):
        return factors[:, :-1]
    return tuple(part[:, :-1] for part in factors)

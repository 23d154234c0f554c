"""Rotary position factors that depend on the length of a sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maxpo.errors import InputError


def fix_rotary_length(model: nn.Module, longest: int) -> None:
    """Make the factors those of the engine: one choice for the run, whatever the lengths in a row. Changes the model.

    transformers chooses by the longest position that it sees in a call, so the factors of a sequence would depend on
    its neighbours in the row. vLLM chooses once: `longrope` by the longest sequence that the engine allows. `dynamic`
    factors of vLLM are those within `max_position_embeddings`, and further tokens have none.

    Args:
        model: a language model.
        longest: number of tokens of the longest prompt and completion of the run.

    Raises:
        InputError: the engine has no factors for so many tokens.
    """
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        kinds = set(types.values()) if isinstance(types, dict) else {types}
        if "longrope" in kinds:
            module.forward = partial(_as_if, module.forward, longest)  # pyright: ignore[reportAttributeAccessIssue]
        elif any("dynamic" in str(kind) for kind in kinds):
            most: int = getattr(module, "original_max_seq_len", longest)
            if longest > most:
                raise InputError(
                    f"the model's rotary factors are dynamic, which the engine has for {most} tokens only; "
                    f"data.max_prompt_tokens + rollout.max_new_tokens = {longest} must not be more"
                )
            module.forward = partial(_as_if, module.forward, most)  # pyright: ignore[reportAttributeAccessIssue]


def _as_if(forward: Any, longest: int, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call the forward pass of a rotary embedding as for a sequence of `longest` tokens."""
    last = torch.full_like(position_ids[:, :1], longest - 1)
    factors = forward(x, torch.cat([position_ids, last], dim=1), *args, **kwargs)
    if isinstance(factors, Tensor):
        return factors[:, :-1]
    return tuple(part[:, :-1] for part in factors)

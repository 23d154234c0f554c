"""The frozen reference of the KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from learner.deepspeed_engine import TrainEngine


def base_of(engine: TrainEngine) -> Callable[..., tuple[Tensor, Tensor]]:
    """The frozen policy under the adapter, as a function like the engine's forward, without a model of its own.

    The adapter counts 0 times there, instead of being left out: which modules are called stays the same, which ZeRO-3
    has learnt.
    """
    from peft.helpers import rescale_adapter_scale

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with rescale_adapter_scale(engine.module, 0.0):
            return engine.forward(*args, **kwargs)

    return forward

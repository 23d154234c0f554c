"""The frozen reference policy of the KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from learner.deepspeed_engine import TrainEngine
from learner.model.loading import load_frozen_policy
from maxpo.config import Config

if TYPE_CHECKING:
    from learner.model.sequence_parallel import SequenceGroup

Forward = Callable[..., tuple[Tensor, Tensor]]
"""A function with the arguments and results of `Policy.forward`."""


def reference_policy(config: Config, engine: TrainEngine, sequence: SequenceGroup | None) -> Forward | None:
    """Return the forward pass of the frozen policy that the run started from. None: the loss has no KL.

    With an adapter, that policy is the base of the trained one. Without an adapter, a second model is loaded.

    Args:
        config: a checked configuration.
        engine: the engine of the policy that is trained.
        sequence: ranks that share packed rows with this one.
    """
    if not config.algorithm.kl_coef:
        return None
    if config.learner.lora.rank:
        return base_of(engine)
    layout: Any = engine.module.layout
    return load_frozen_policy(config, sequence, layout).to(engine.device)


def base_of(engine: TrainEngine) -> Forward:
    """Return the forward pass of the frozen policy under the adapter, which needs no second model.

    The adapter is multiplied by 0 instead of being left out. So the same modules are called in the same order, which
    ZeRO-3 has recorded in order to gather their parameters ahead.
    """
    from peft.helpers import rescale_adapter_scale

    def forward(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        with rescale_adapter_scale(engine.module, 0.0):
            return engine.forward(*args, **kwargs)

    return forward

"""Estimators of users: a function f(rewards [G, N], k [G], valid [G, N]) that returns advantages [G, N]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maxpo.estimators.arguments import GroupK, Mask
from maxpo.plugins import FUNCTION, find, is_function


@cache
def own_function(name: str) -> Callable[..., Any]:
    """Return a user's function by its address.

    Raises:
        ValueError: It cannot be imported, or is no function.
    """
    return find(name, {}, "estimator", form=FUNCTION, fits=is_function, needed="a function")


def own_estimator(name: str) -> Callable[..., Float[Tensor, "G N"]]:
    """Return a user's estimator with the signature of all estimators.

    The function gets rewards in float64, K as integers [G] and the mask, on one device. The result is 0 where a sample
    is not valid, whatever the function returns there.

    Raises:
        ValueError: See `own_function`. A call raises it if the result has another shape or is not finite.
    """
    function = own_function(name)

    def advantages(rewards: Float[Tensor, "G N"], k: GroupK = 4, valid: Mask = None) -> Float[Tensor, "G N"]:
        mask = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
        ks = torch.as_tensor(k, device=rewards.device).expand(len(rewards))
        found = function(rewards.double(), ks, mask)
        if not isinstance(found, Tensor) or found.shape != rewards.shape:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name}: must return a tensor {list(rewards.shape)}, and returned {what}")
        found = found.detach().masked_fill(~mask, 0.0)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name}: an advantage is not finite")
        return found.to(rewards.dtype)

    return advantages


def own_problems(name: str, group_size: int, k: int) -> Iterator[str]:
    """Yield what is wrong with a user's estimator, from two calls with a small batch."""
    try:
        advantages = own_estimator(name)
    except ValueError as error:
        yield str(error)
        return
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(3, group_size, generator=generator) < 0.4).double()
    valid = torch.ones_like(rewards, dtype=torch.bool)
    valid[1, -1] = False
    rewards[0, 0] = 1.0
    other = torch.where(valid, rewards, 7.0)
    try:
        first, second = advantages(rewards, k, valid), advantages(other, k, valid)
    except Exception as error:  # the user's code may raise anything
        yield str(error) if isinstance(error, ValueError) else f"{name}: {type(error).__name__}: {error}"
        return
    if not torch.equal(first, second):
        yield f"{name}: the reward of a sample that is not valid changes advantages: use `valid`"

"""Estimators by name, mixtures of two estimators, and the test for a non-zero advantage."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maxpo.config import AlgorithmConfig
from maxpo.estimators.advantages import ADVANTAGES, AdvantageFn
from maxpo.estimators.arguments import GroupK, Mask
from maxpo.estimators.own import own_estimator
from maxpo.types import Mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters of all estimators. Each takes those that its function names."""

    objective: str = "max"
    """Statistic of K samples, as in `maxpo.estimators.objectives`."""
    lam: float | None = None
    """Weight of `maxpo` in `interpolated`."""
    kappa: float = 3.0
    """Squared score of a failure divided by that of a success, for `kappa`."""


DEFAULTS = Parameters()


def estimator(name: str, parameters: Parameters = DEFAULTS) -> AdvantageFn:
    """Return the estimator of this name with its parameters, or a user's function.

    Raises:
        ValueError: See `own_function`.
    """
    if ":" in name:
        return own_estimator(name)
    function = ADVANTAGES[name]
    named = inspect.signature(function).parameters
    return partial(function, **{key: value for key, value in asdict(parameters).items() if key in named})


def parameters_of(algorithm: AlgorithmConfig, mix: Mix) -> Parameters:
    """Return the parameters of a training step."""
    return Parameters(objective=algorithm.objective, lam=mix.lam, kappa=algorithm.kappa)


def mixed(
    algorithm: AlgorithmConfig, mix: Mix, rewards: Float[Tensor, "G N"], k: GroupK, valid: Mask = None
) -> Float[Tensor, "G N"]:
    """Return (1 - w) times the advantages of `algorithm.advantage` plus w times those of `algorithm.mix_with`.

    Args:
        algorithm: The estimators and their parameters.
        mix: Weight w, 0 .. 1, and the `lam` of the step.
        rewards: [G, N] rewards of both estimators.
        k: K of both estimators.
        valid: Mask of both estimators.
    """
    parameters = parameters_of(algorithm, mix)
    advantages = estimator(algorithm.advantage, parameters)(rewards, k, valid)
    if algorithm.mix_with is None:
        return advantages
    return torch.lerp(advantages, estimator(algorithm.mix_with, parameters)(rewards, k, valid), mix.weight)


def nonzero(
    advantages: Float[Tensor, "G N"], rewards: Float[Tensor, "G N"], valid: Bool[Tensor, "G N"]
) -> Bool[Tensor, "G N"]:
    """Return True where an advantage exceeds rounding: 1e-10, or 1e-10 times the spread for a spread below 1.

    Without spread only an estimator that is not centred can have signal. The scale is then the size of the reward.
    """
    high = rewards.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    spread = high - rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    scale = torch.where(spread > 0, spread, high.abs()).clamp(max=1.0)
    return valid & (advantages.abs() > 1e-10 * scale)

"""Policy losses and KL estimators, one pure function per token each. Entry t of every array describes token t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def ppo_clip(
    logprobs: Float[Tensor, " T"],
    old_logprobs: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, " T"]:
    """Return -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = exp(logprobs - old_logprobs).

    PPO (arXiv 1707.06347), eq. 7, with the separate bounds of DAPO (arXiv 2503.14476).

    Args:
        logprobs: Log-probabilities of the trained policy, in nats.
        old_logprobs: Log-probabilities of the policy at the start of the step, in nats. Receives no gradient.
        advantages: Advantage A of the sequence that each token belongs to.
        clip_low: Distance of the lower bound of the ratio rho from 1.
        clip_high: Distance of the upper bound of the ratio rho from 1.
    """
    ratio = (logprobs - old_logprobs.detach()).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def policy_gradient(
    logprobs: Float[Tensor, " T"],
    old_logprobs: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, " T"]:
    """Return -A log pi, plain REINFORCE. `old_logprobs` and the clip bounds have no effect."""
    return -advantages * logprobs


PolicyLoss = Callable[..., Tensor]
LOSSES: dict[str, PolicyLoss] = {"ppo_clip": ppo_clip, "policy_gradient": policy_gradient}


def kl_estimate(
    logprobs: Float[Tensor, " T"], ref_logprobs: Float[Tensor, " T"], estimator: Literal["k1", "k2", "k3"]
) -> Float[Tensor, " T"]:
    """Estimate KL(pi || ref) at each token from samples of pi, in nats.

    With d = logprobs - ref_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (J. Schulman, "Approximating KL divergence", 2020). The values of k1 and k3 are unbiased, that of k2 is not.

    As a loss, only k2 has the gradient of the KL in expectation, for samples of pi. The gradient of k1 is zero on
    average. The gradient of k3 is that of the reverse divergence KL(ref || pi). All this is for each token with the
    tokens before it as they are: the effect of a token on the KL of later tokens has no gradient.
    """
    d = logprobs - ref_logprobs.detach()
    match estimator:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(-d) + d


def truncated_importance_weights(
    learner_logprobs: Float[Tensor, " T"], sampler_logprobs: Float[Tensor, " T"], cap: float
) -> Float[Tensor, " T"]:
    """Return min(pi_learner / pi_sampler, cap) of each token, without gradient.

    Truncated importance sampling (Ionides 2008), per token. The weights correct for a sampler and a learner that
    compute different probabilities from the same parameters, and for parameters that changed since sampling.
    """
    return (learner_logprobs - sampler_logprobs).detach().exp().clamp(max=cap)

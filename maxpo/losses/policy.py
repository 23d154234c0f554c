"""Policy losses, KL estimators and corrections, per token. Entry t of an array describes token t.

A loss is a function of `LossInput` that returns [T] losses. The log-ratio of token t is l_t = log pi_t - log old_t, its
ratio is rho_t = exp(l_t), and A_t is the advantage of its sequence. At rho = 1, in the first optimizer step of a
training step, all losses have the gradient of `policy_gradient`. They differ in what becomes of tokens that have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.config import AlgorithmConfig
from maxpo.plugins import FUNCTION, find, is_function


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInput:
    """The T tokens of a row of sequences."""

    logprobs: Float[Tensor, " T"]
    """Log-probabilities of the trained policy, in nats. The only tensor with a gradient."""
    old_logprobs: Float[Tensor, " T"]
    """Log-probabilities of the policy at the start of the step, in nats."""
    advantages: Float[Tensor, " T"]
    """Advantage of the sequence of each token."""
    mask: Bool[Tensor, " T"]
    """True where the policy has sampled the token. Losses elsewhere have no effect."""
    sequence: Int[Tensor, " T"]
    """Number of the sequence of each token in the row, 0 .. B - 1."""
    algorithm: AlgorithmConfig
    """All settings of the section `algorithm`."""

    @property
    def ratio(self) -> Float[Tensor, " T"]:
        """rho."""
        return (self.logprobs - self.old_logprobs).exp()

    def clip(self, ratio: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Return the ratio within 1 - clip_low .. 1 + clip_high."""
        return ratio.clamp(1 - self.algorithm.clip_low, 1 + self.algorithm.clip_high)


PolicyLoss = Callable[[LossInput], Tensor]


def ppo_clip(x: LossInput) -> Float[Tensor, " T"]:
    """Return -min(rho A, clip(rho) A).

    PPO (arXiv 1707.06347), eq. 7, with the separate bounds of DAPO (arXiv 2503.14476).
    """
    return -torch.minimum(x.ratio * x.advantages, x.clip(x.ratio) * x.advantages)


def dual_clip(x: LossInput) -> Float[Tensor, " T"]:
    """Return `ppo_clip`, and at most -c A for A < 0, with c = `algorithm.dual_clip`.

    So a token of negative advantage that has become much likelier than it was sampled has no gradient.
    Dual-clip PPO (arXiv 1912.09729), eq. 5.
    """
    most = -x.algorithm.dual_clip * x.advantages
    return torch.where(x.advantages < 0, torch.minimum(ppo_clip(x), most), ppo_clip(x))


def gspo(x: LossInput) -> Float[Tensor, " T"]:
    """Return -min(s A, clip(s) A) with s the ratio of the whole sequence, exp(mean of l over its tokens).

    GSPO (arXiv 2507.18071), eq. 5, in the per-token form of its eq. 13. The mean over the tokens of a sequence, which
    `aggregation: sequence_mean` takes, has the gradient of the paper. The ratio is of another size than that of single
    tokens, so the paper has clip bounds of 3e-4 and 4e-4.
    """
    moved = x.logprobs - x.old_logprobs
    ratio = mean_by_sequence(moved.detach(), x.sequence, x.mask).exp() * (moved - moved.detach()).exp()
    return -torch.minimum(ratio * x.advantages, x.clip(ratio) * x.advantages)


def cispo(x: LossInput) -> Float[Tensor, " T"]:
    """Return -clip(rho) A log pi, with no gradient through the clipped ratio: every token keeps one.

    CISPO (MiniMax-M1, arXiv 2506.13585), eq. 4 and 5.
    """
    return -x.clip(x.ratio.detach()) * x.advantages * x.logprobs


def sapo(x: LossInput) -> Float[Tensor, " T"]:
    """Return -(4 / tau) sigmoid(tau (rho - 1)) A, with tau from `algorithm.sapo_temperatures` by the sign of A.

    A soft gate in the place of the clip bounds. SAPO (arXiv 2511.20347).
    """
    positive, negative = x.algorithm.sapo_temperatures
    tau = torch.where(x.advantages > 0, positive, negative)
    return -4 / tau * torch.sigmoid(tau * (x.ratio - 1)) * x.advantages


def policy_gradient(x: LossInput) -> Float[Tensor, " T"]:
    """Return -A log pi, plain REINFORCE. `old_logprobs` and the clip bounds have no effect."""
    return -x.advantages * x.logprobs


LOSSES: dict[str, PolicyLoss] = {
    "ppo_clip": ppo_clip,
    "dual_clip": dual_clip,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "policy_gradient": policy_gradient,
}


@cache
def policy_loss(name: str) -> PolicyLoss:
    """Return a loss by its name, or a user's function by its address.

    Raises:
        ValueError: It does not exist, or cannot be imported.
    """
    return find(name, LOSSES, "loss", form=FUNCTION, fits=is_function, needed="a function")


def own_problems(name: str) -> Iterator[str]:
    """Yield what is wrong with a user's loss, from a call with a small row."""
    generator = torch.Generator().manual_seed(0)
    logprobs = (-torch.rand(12, generator=generator)).requires_grad_()
    x = LossInput(
        logprobs=logprobs,
        old_logprobs=logprobs.detach() - 0.1 * torch.randn(12, generator=generator),
        advantages=torch.tensor([1.0] * 4 + [-0.5] * 4 + [0.25] * 4),
        mask=torch.arange(12) % 4 > 0,
        sequence=torch.arange(12) // 4,
        algorithm=AlgorithmConfig(),
    )
    try:
        loss = policy_loss(name)(x)
        if not isinstance(loss, Tensor) or loss.shape != (12,):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"{name}: must return a tensor with a loss for each of the 12 tokens of a trial row"
        elif not bool(torch.isfinite(loss[x.mask]).all()):
            yield f"{name}: a loss of a trial row is not finite"
        elif not loss.requires_grad:
            yield f"{name}: no gradient flows from the losses to x.logprobs"
        elif not float(torch.autograd.grad(loss[x.mask].sum(), logprobs)[0].abs().sum()) > 0:
            yield f"{name}: the gradient of the losses with respect to x.logprobs is 0 or not finite"
    except ValueError as error:
        yield str(error)
    except Exception as error:  # the user's code may raise anything
        yield f"{name}: {type(error).__name__}: {error}"


def mean_by_sequence(
    values: Float[Tensor, " T"], sequence: Int[Tensor, " T"], mask: Bool[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """Return for each token the mean of the values over the loss tokens of its sequence, 0 without any."""
    tokens = sum_by_sequence(torch.ones_like(values), sequence, mask)
    return sum_by_sequence(values, sequence, mask) / tokens.clamp(min=1)


def sum_by_sequence(
    values: Float[Tensor, " T"], sequence: Int[Tensor, " T"], mask: Bool[Tensor, " T"]
) -> Float[Tensor, " T"]:
    """Return for each token the sum of the values over the loss tokens of its sequence."""
    sums = values.new_zeros(len(values)).index_add_(0, sequence, torch.where(mask, values, 0.0))
    return sums[sequence]


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


def trusted(
    gap: Float[Tensor, " T"], sequence: Int[Tensor, " T"], mask: Bool[Tensor, " T"], algorithm: AlgorithmConfig
) -> Bool[Tensor, " T"]:
    """Return True at the tokens whose ratio of learner to sampler is within the bounds of the settings.

    `token_mask` judges each token by its own ratio (IcePop, arXiv 2510.18855). `sequence_mask` judges all tokens of a
    sequence by the ratio of the sequence: the product of those of its tokens, or its geometric mean. The others have no
    policy loss, and still count in its denominators.

    Args:
        gap: Log-ratio of learner to sampler.
        sequence: Number of the sequence of each token.
        mask: True where the policy has sampled the token.
        algorithm: The settings.
    """
    kept = torch.ones_like(mask)
    if algorithm.token_mask:
        low, high = algorithm.token_mask
        kept &= (gap.exp() >= low) & (gap.exp() <= high)
    if algorithm.sequence_mask:
        low, high = algorithm.sequence_mask
        of_sequence = sum_by_sequence if algorithm.sequence_mask_ratio == "product" else mean_by_sequence
        log_ratio = of_sequence(gap, sequence, mask)
        kept &= (log_ratio.exp() >= low) & (log_ratio.exp() <= high)
    return kept

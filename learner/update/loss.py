"""The loss of one microbatch."""

from __future__ import annotations

import torch
from torch import Tensor

from maxpo.batches.packing import TrainBatch
from maxpo.config import AlgorithmConfig
from maxpo.losses.aggregation import weighted_sum
from maxpo.losses.policy import LossInput, kl_estimate, policy_loss, truncated_importance_weights, trusted

SUMS = (
    "loss",
    "tokens",
    "entropy",
    "clipped_low",
    "clipped_high",
    "approx_kl",
    "reference_kl",
    "tis_weight",
    "tis_capped",
    "masked",
    "mismatch_kl",
    "mismatch_abs",
)
"""Quantities that are summed over the loss tokens of a microbatch and over ranks."""


def lag_sums(lags: int) -> tuple[str, ...]:
    """Return the names of the sums over tokens of each age: first the mismatch, then the numbers of tokens."""
    return (*(f"mismatch_kl_lag_{lag}" for lag in range(lags)), *(f"tokens_lag_{lag}" for lag in range(lags)))


def microbatch_loss(
    logprobs: Tensor,
    entropy: Tensor,
    batch: TrainBatch,
    algorithm: AlgorithmConfig,
    *,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    lags: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the microbatch's share of the step's loss, and the sums of `SUMS` for the log.

    Args:
        logprobs: [T] of the policy, with gradient.
        entropy: [T] of the policy's distributions.
        batch: the packed row.
        algorithm: loss, clip bounds, KL, entropy bonus, importance sampling.
        old_logprobs: [T] of the policy at the start of the step; None if they equal `logprobs`, as in the first
            optimizer step of a training step.
        ref_logprobs: [T] of the frozen reference; None without a KL term.
        lags: number of different ages of tokens, for the sums of `lag_sums`.
    """
    mask = batch.loss_mask
    current = logprobs.detach()
    old = current if old_logprobs is None else old_logprobs
    sequence = torch.repeat_interleave(torch.tensor(batch.lengths, device=mask.device))
    inputs = LossInput(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=batch.advantages,
        mask=mask,
        sequence=sequence,
        algorithm=algorithm,
    )
    per_token = policy_loss(algorithm.loss)(inputs)
    sums: dict[str, Tensor] = {}
    gap = old - batch.rollout_logprobs
    if algorithm.token_mask or algorithm.sequence_mask:
        kept = trusted(gap, sequence, mask, algorithm)
        per_token = torch.where(kept, per_token, 0.0)
        sums["masked"] = (mask & ~kept).sum()
    if algorithm.tis_cap is not None:
        weights = truncated_importance_weights(old, batch.rollout_logprobs, algorithm.tis_cap)
        per_token = per_token * weights
        sums["tis_weight"] = weights[mask].sum()
        sums["tis_capped"] = (gap.exp() > algorithm.tis_cap)[mask].sum()
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, ref_logprobs, algorithm.kl_estimator)
        per_token = per_token + algorithm.kl_coef * kl
        # The value of k3 is unbiased and never negative, whichever estimator has the gradient.
        sums["reference_kl"] = kl_estimate(current, ref_logprobs, "k3")[mask].sum()
    if algorithm.entropy_coef:
        per_token = per_token - algorithm.entropy_coef * entropy
    loss = weighted_sum(per_token, batch.token_weights, mask)

    # Bounded, so that a token that one side thinks impossible raises the alarm instead of an infinite metric.
    mismatch = torch.expm1(gap.clamp(-50, 50)) - gap.clamp(-50, 50)
    moved = current - old
    ratio = moved.exp()
    sums |= {
        "loss": loss.detach(),
        "tokens": mask.sum(),
        "entropy": entropy.detach()[mask].sum(),
        "clipped_low": ((ratio < 1 - algorithm.clip_low) & (batch.advantages < 0) & mask).sum(),
        "clipped_high": ((ratio > 1 + algorithm.clip_high) & (batch.advantages > 0) & mask).sum(),
        "approx_kl": (torch.expm1(moved) - moved)[mask].sum(),
        "mismatch_kl": mismatch[mask].sum(),
        "mismatch_abs": gap.abs()[mask].sum(),
    }
    if lags:
        assert batch.lags is not None
        of_loss = batch.lags[mask]
        kl_sums = mismatch.new_zeros(lags).index_add_(0, of_loss, mismatch[mask])
        token_sums = mismatch.new_zeros(lags).index_add_(0, of_loss, torch.ones_like(mismatch[mask]))
        sums |= dict(zip(lag_sums(lags), [*kl_sums, *token_sums], strict=True))
    return loss, sums

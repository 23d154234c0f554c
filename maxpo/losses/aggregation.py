"""From per-token losses to one number, with *global* denominators.

The loss of a step is `sum_t w_t loss_t` over all tokens of all ranks. The weights depend on global counts only, so
neither the split into microbatches nor the number of ranks changes the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def sequence_weight(
    aggregation: Aggregation, loss_tokens: int, *, total_tokens: float, total_sequences: float, constant: float
) -> float:
    """Return the weight of each loss token of one sequence.

    token_mean: 1 / total_tokens. sequence_mean: 1 / (loss_tokens x total_sequences).
    constant: 1 / (constant x total_sequences), as in Dr. GRPO (arXiv 2503.20783). With `constant` the length of a
    sequence does not change the weight of its tokens, so the gradient of a sum over tokens stays unbiased.

    Args:
        aggregation: Name of one of the three rules.
        loss_tokens: Number of loss tokens of this sequence. 0 gives a weight of 0.
        total_tokens: Number of loss tokens of the optimizer step over all ranks.
        total_sequences: Number of sequences of the optimizer step over all ranks. May be a fraction, because an
            optimizer step takes an equal share of a training step.
        constant: Divisor of the sum over a sequence, in tokens. Used by `constant` only.
    """
    if loss_tokens == 0:
        return 0.0
    match aggregation:
        case "token_mean":
            return 1.0 / total_tokens
        case "sequence_mean":
            return 1.0 / (loss_tokens * total_sequences)
        case "constant":
            return 1.0 / (constant * total_sequences)


def weighted_sum(
    per_token: Float[Tensor, " T"], weights: Float[Tensor, " T"], mask: Bool[Tensor, " T"]
) -> Float[Tensor, ""]:
    """Return sum_t w_t x_t over the tokens where mask is True. A NaN outside the mask has no effect."""
    return (torch.where(mask, per_token, 0.0) * weights).sum()

"""From per-token losses to one number, with *global* denominators.

The loss of a step is `sum_t w_t loss_t` over all tokens of all ranks, with weights that depend on global
counts only. So neither the split into microbatches nor the number of ranks changes the gradient.
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
    """Weight of each loss token of one sequence.

    token_mean: 1 / total_tokens. sequence_mean: 1 / (loss_tokens x total_sequences).
    constant: 1 / (constant x total_sequences), as in Dr. GRPO (arXiv 2503.20783): the length of a sequence
    does not change the weight of its tokens, so the gradient of a sum over tokens stays unbiased.

    Args:
        aggregation: which of the three.
        loss_tokens: loss tokens of this sequence; 0 gives 0.
        total_tokens: loss tokens of the whole optimizer step, over all ranks.
        total_sequences: sequences of it; an equal share of a training step need not be whole.
        constant: tokens that the sum over a sequence is divided by; used by `constant` only.
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
    """sum_t w_t x_t over the tokens where mask is True; a NaN outside the mask does not leak in."""
    return (torch.where(mask, per_token, 0.0) * weights).sum()

"""Token log-probabilities and entropy from hidden states, in chunks.

This module holds the only next-token shift of the project: the logits at position t - 1 predict token t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore


def token_logprobs(
    hidden: Float[Tensor, "U H"],
    head: Callable[[Tensor], Tensor],
    token_ids: Int[Tensor, " T"],
    mask: Bool[Tensor, " T"],
    *,
    places: Int[Tensor, " S"] | None = None,
    temperature: float,
    chunk: int,
    entropy_grad: bool = False,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Compute log pi(token_t | tokens before t) and the entropy of that distribution, both in nats, float32.

    The distribution is softmax(logits / temperature). Logits are computed for `chunk` positions at a time, and again
    in the backward pass. A tensor [T, V] never exists, and memory grows with chunk x V only.

    Args:
        hidden: Last hidden states of a packed row of sequences, or of a part of the row.
        head: Language-model head, [n, H] -> [n, V].
        token_ids: Tokens of the row or part, T = S, or with the token that follows the part, T = S + 1.
        mask: True at tokens to compute. Must be False at the first token of a sequence, which no token precedes.
        places: Index in `hidden` of each of the S states of the row or part. None: U = S, in this order.
        temperature: Divisor of the logits, > 0.
        chunk: Number of positions at a time, >= 1.
        entropy_grad: True to let gradient flow through the entropy, which an entropy bonus needs.

    Returns:
        Log-probabilities and entropies, two [T] arrays. Entry t describes token t and is 0 where mask is False.

    Raises:
        ValueError: The mask is True at token 0.
    """
    targets = mask.nonzero().squeeze(1)
    if targets.numel() and int(targets[0]) == 0:
        raise ValueError("mask is True at token 0, which no position predicts")
    logprobs = torch.zeros(token_ids.shape[0], dtype=torch.float32, device=hidden.device)
    entropy = torch.zeros_like(logprobs)
    if not targets.numel():
        # The zero term gives every parameter, the head included, a gradient of 0. All ranks must have gradients of the
        # same parameters.
        return logprobs + 0.0 * head(hidden[:1]).float().sum(), entropy

    def one_chunk(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if entropy_grad:
            logp = _log_softmax(head(states), temperature)
            return logp.gather(1, labels[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
        chosen, logp = _chosen(head(states), labels, temperature)
        # `checkpoint` computes again only what precedes the last tensor kept for the gradient, so not the entropy.
        with torch.no_grad():
            return chosen, -logp.exp().mul_(logp).sum(-1)

    before = targets - 1 if places is None else places[targets - 1]
    states, labels = hidden[before], token_ids[targets]
    pieces: list[tuple[Tensor, Tensor]] = []
    for start in range(0, targets.numel(), chunk):
        part = states[start : start + chunk], labels[start : start + chunk]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(one_chunk, *part, use_reentrant=False))  # pyright: ignore
        else:
            pieces.append(one_chunk(*part))
    logprobs = logprobs.index_put((targets,), torch.cat([p[0] for p in pieces]))
    entropy = entropy.index_put((targets,), torch.cat([p[1] for p in pieces]))
    return logprobs, entropy


class _Chosen(torch.autograd.Function):
    """Log-probabilities of the labels and, without gradient, of all tokens.

    The gradient is (label - softmax) times that of the log-probability. Torch would make it by way of a tensor of zeros
    and three further ones of the size of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logp = _log_softmax(logits, temperature)
        ctx.save_for_backward(logp, labels)
        ctx.mark_non_differentiable(logp)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logp.gather(1, labels[:, None]).squeeze(1), logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logp, labels = ctx.saved_tensors
        grad = (grads[0] / ctx.temperature)[:, None]
        result = logp.exp().mul_(-grad).scatter_add_(1, labels[:, None], grad)
        return result.to(ctx.dtype), None, None


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.float()
    return (wide if temperature == 1 else wide / temperature).log_softmax(-1)


_chosen: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] = _Chosen.apply  # pyright: ignore

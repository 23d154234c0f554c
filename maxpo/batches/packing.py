"""From scored groups to packed microbatches, balanced over learner ranks.

A microbatch is one row of T tokens: sequences one after the other, without padding. Which sequences share a
row, and which rank gets the row, changes nothing but speed: weights and denominators are global.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maxpo.batches.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One packed microbatch of T tokens in B sequences, on one device."""

    token_ids: Int[Tensor, " T"]
    position_ids: Int[Tensor, " T"]
    """Position within its own sequence; 0 starts a sequence."""
    lengths: tuple[int, ...]
    """[B] tokens of each sequence; they add up to T."""
    loss_mask: Bool[Tensor, " T"]
    """True where the token contributes to the loss."""
    rollout_logprobs: Float[Tensor, " T"]
    advantages: Float[Tensor, " T"]
    """The advantage of its sequence at each token."""
    token_weights: Float[Tensor, " T"]
    """Weight of each token in the loss of the step, from global counts (`maxpo.losses.aggregation`)."""

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on `device`."""
        return TrainBatch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            lengths=self.lengths,
            loss_mask=self.loss_mask.to(device),
            rollout_logprobs=self.rollout_logprobs.to(device),
            advantages=self.advantages.to(device),
            token_weights=self.token_weights.to(device),
        )


def plan_microbatches(lengths: Sequence[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Which sequences go together: plan[rank][microbatch] is a list of indices into `lengths`.

    Every rank gets the same number of microbatches, since ZeRO-3 gathers parameters together; a microbatch may
    be empty. Longest first to the least loaded rank, then to the least loaded microbatch with room.

    Raises:
        ValueError: a sequence is longer than the budget.
    """
    too_long = max(lengths, default=0)
    if too_long > token_budget:
        raise ValueError(
            f"a sequence of {too_long} tokens does not fit learner.token_budget = {token_budget}; raise the budget"
        )
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in longest_first:
        rank = min(range(ranks), key=lambda r: (load[r], r))
        shares[rank].append(i)
        load[rank] += lengths[i]

    count = max(1, *(-(-rank_load // token_budget) for rank_load in load))
    while True:
        plan = [_fill(share, lengths, token_budget, count) for share in shares]
        if all(bins is not None for bins in plan):
            return [bins for bins in plan if bins is not None]
        count += 1


def _fill(share: Sequence[int], lengths: Sequence[int], token_budget: int, count: int) -> list[list[int]] | None:
    """The share in `count` bins, each to the least loaded bin; None where one overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for i in share:
        b = min(range(count), key=lambda b: (load[b], b))
        if load[b] + lengths[i] > token_budget:
            return None
        bins[b].append(i)
        load[b] += lengths[i]
    return bins


def pack(
    samples: Sequence[Sample],
    advantages: Float[Tensor, "G N"],
    weight_of: Callable[[Sample], float],
    multiple: int = 1,
) -> TrainBatch:
    """One row of the samples, on the CPU. No samples give two tokens without loss, which keep ranks in step.

    Args:
        samples: what goes into the row.
        advantages: of all groups; each sample takes its own entry.
        weight_of: weight of each loss token of a sample.
        multiple: tokens without loss follow until T is a multiple of this.
    """
    samples = list(samples) or [_filler(2)]
    if missing := -sum(len(s.token_ids) for s in samples) % multiple:
        samples.append(_filler(missing))
    lengths = tuple(len(s.token_ids) for s in samples)
    repeats = torch.tensor(lengths)
    rows = torch.tensor([[s.group, s.index] for s in samples])
    per_sample = advantages.cpu()[rows[:, 0], rows[:, 1]].float()
    weights = torch.tensor([weight_of(s) for s in samples], dtype=torch.float32)
    return TrainBatch(
        token_ids=torch.tensor([t for s in samples for t in s.token_ids]),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        lengths=lengths,
        loss_mask=torch.tensor([m for s in samples for m in s.loss_mask]),
        rollout_logprobs=torch.tensor([p for s in samples for p in s.rollout_logprobs], dtype=torch.float32),
        advantages=per_sample.repeat_interleave(repeats),
        token_weights=weights.repeat_interleave(repeats),
    )


def own_part(batch: TrainBatch, part: int, parts: int) -> TrainBatch:
    """The row for one of `parts` ranks that share it: the loss of the tokens that its part of the row predicts.

    That part is T / parts tokens, and each predicts the one that follows it.
    """
    each = batch.token_ids.shape[0] // parts
    mask = torch.zeros_like(batch.loss_mask)
    own = slice(part * each + 1, (part + 1) * each + 1)
    mask[own] = batch.loss_mask[own]
    return replace(batch, loss_mask=mask)


def _filler(tokens: int) -> Sample:
    return Sample(
        group=0,
        index=0,
        token_ids=(0,) * tokens,
        loss_mask=(False,) * tokens,
        rollout_logprobs=(0.0,) * tokens,
    )

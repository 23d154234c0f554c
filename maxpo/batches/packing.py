"""From scored groups to packed microbatches, balanced over learner ranks.

A microbatch is one row of T tokens: sequences one after the other, without padding. The assignment of sequences to
rows and of rows to ranks changes only the speed, because weights and denominators are global.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from maxpo.batches.samples import Sample

REPEATED = 1 / 8
"""Share of the tokens of a prompt that a further sequence with it counts. Attention copies keys and values of the
prompt for each sequence, and nothing else."""
SETS = 8
"""Least number of sets of sequences with one prompt for each rank, so that ranks have about the same load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One packed microbatch of T tokens in B sequences, on one device."""

    token_ids: Int[Tensor, " T"]
    position_ids: Int[Tensor, " T"]
    """Position of each token within its sequence. 0 starts a sequence."""
    lengths: tuple[int, ...]
    """[B] Number of tokens of each sequence. The sum is T."""
    loss_mask: Bool[Tensor, " T"]
    """True where the token contributes to the loss."""
    rollout_logprobs: Float[Tensor, " T"]
    advantages: Float[Tensor, " T"]
    """Advantage of the sequence that each token belongs to."""
    token_weights: Float[Tensor, " T"]
    """Weight of each token in the loss of the step, computed from global counts (`maxpo.losses.aggregation`)."""
    shared: tuple[tuple[int, int], ...]
    """[B] For each sequence a sequence of the row, and the number of tokens at the beginning that both have in common:
    an earlier sequence with the same prompt, or itself and 0."""
    lags: Int[Tensor, " T"] | None = None
    """Updates of the weights since each token was sampled. None: not asked for."""

    def to(self, device: torch.device) -> TrainBatch:
        """Return this batch on `device`."""
        return TrainBatch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            lengths=self.lengths,
            loss_mask=self.loss_mask.to(device),
            rollout_logprobs=self.rollout_logprobs.to(device),
            advantages=self.advantages.to(device),
            token_weights=self.token_weights.to(device),
            shared=self.shared,
            lags=None if self.lags is None else self.lags.to(device),
        )


def plan_microbatches(
    lengths: Sequence[int],
    token_budget: int,
    ranks: int,
    *,
    padded: bool = False,
    prompts: Sequence[tuple[int, int]] | None = None,
) -> list[list[list[int]]]:
    """Assign sequences to microbatches. plan[rank][microbatch] is a list of indices into `lengths`.

    Every rank gets the same number of microbatches. A microbatch may be empty. The longest sequence, or set of
    sequences with one prompt, goes first, to the least loaded rank and within the rank to the least loaded microbatch.

    Args:
        lengths: Numbers of tokens of the sequences.
        token_budget: Largest number of tokens of a microbatch, padding included.
        ranks: Number of ranks.
        padded: True if each sequence of a microbatch is padded to the longest. Sequences of similar lengths then share
            a microbatch.
        prompts: Identity and length of the prompt of each sequence, if a row holds a prompt once. Its further
            sequences count `REPEATED` of its tokens. None: rows hold whole sequences.

    Raises:
        ValueError: A sequence is longer than the budget.
    """
    too_long = max(lengths, default=0)
    if too_long > token_budget:
        raise ValueError(
            f"a sequence of {too_long} tokens does not fit learner.token_budget = {token_budget}. Raise the budget."
        )
    together = [[i] for i in range(len(lengths))]
    if prompts is not None:
        most = min(token_budget, max(too_long, sum(lengths) // (SETS * ranks)))
        together = _sets(lengths, prompts, most)
    sizes = [_size(members, lengths, prompts) for members in together]
    # The index breaks ties, so that the plan depends on the lengths only.
    longest_first = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in longest_first:
        rank = min(range(ranks), key=lambda r: (load[r], r))
        shares[rank].append(i)
        load[rank] += sizes[i]

    # All ranks take the same count of rows, since ZeRO-3 gathers parameters on all ranks together. The count starts at
    # the lower bound of the fullest rank and grows while the rows of some rank overflow.
    count = max(1, *(-(-rank_load // token_budget) for rank_load in load))
    fill = _fill_padded if padded else _fill
    while True:
        plan = [fill(share, sizes, token_budget, count) for share in shares]
        if all(bins is not None for bins in plan):
            return [[[i for j in row for i in together[j]] for row in bins] for bins in plan if bins is not None]
        count += 1


def _sets(lengths: Sequence[int], prompts: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Return sets of sequences with one prompt, whose size is at most `most`."""
    sets: list[list[int]] = []
    last: dict[int, list[int]] = {}
    for i, (prompt, _) in enumerate(prompts):
        members = last.get(prompt)
        if members is None or _size([*members, i], lengths, prompts) > most:
            members = last[prompt] = []
            sets.append(members)
        members.append(i)
    return sets


def _size(members: Sequence[int], lengths: Sequence[int], prompts: Sequence[tuple[int, int]] | None) -> int:
    """Return the number of tokens that sequences with one prompt count for."""
    total = sum(lengths[i] for i in members)
    return total if prompts is None else total - int((len(members) - 1) * prompts[members[0]][1] * (1 - REPEATED))


def _fill(share: Sequence[int], lengths: Sequence[int], token_budget: int, count: int) -> list[list[int]] | None:
    """Put each sequence of the share into the least loaded of `count` bins. Return None if a bin overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for i in share:
        b = min(range(count), key=lambda b: (load[b], b))
        if load[b] + lengths[i] > token_budget:
            return None
        bins[b].append(i)
        load[b] += lengths[i]
    return bins


def _fill_padded(share: Sequence[int], lengths: Sequence[int], token_budget: int, count: int) -> list[list[int]] | None:
    """Fill `count` bins one after the other, from the longest sequence. Return None if the sequences do not fit."""
    bins: list[list[int]] = [[]]
    for i in share:
        # The first of a bin is its longest.
        if bins[-1] and (len(bins[-1]) + 1) * lengths[bins[-1][0]] > token_budget:
            bins.append([])
        bins[-1].append(i)
    return None if len(bins) > count else bins + [[] for _ in range(count - len(bins))]


def pack(
    samples: Sequence[Sample],
    advantages: Float[Tensor, "G N"],
    weight_of: Callable[[Sample], float],
    multiple: int = 1,
    version: int | None = None,
) -> TrainBatch:
    """Pack the samples into one row on the CPU.

    An empty list of samples gives a row of two tokens without loss, which keeps the ranks in step.

    Args:
        samples: Samples of the row.
        advantages: Advantages of all groups. Each sample takes the entry at its group and index.
        weight_of: Function that gives the weight of each loss token of a sample.
        multiple: Divisor of T. Tokens without loss fill the row up to the next multiple.
        version: Version of the weights now, for `TrainBatch.lags`. None: without lags.
    """
    # A rank without samples must still run forward and backward, since ZeRO-3 waits for all ranks.
    samples = list(samples) or [_filler(2)]
    if missing := -sum(len(s.token_ids) for s in samples) % multiple:
        samples.append(_filler(missing))
    lengths = [len(s.token_ids) for s in samples]
    starts = np.cumsum([0, *lengths[:-1]])
    per_sample = advantages.cpu()[[s.group for s in samples], [s.index for s in samples]].float()
    weights = np.array([weight_of(s) for s in samples], np.float32)
    return TrainBatch(
        token_ids=_tensor(np.concatenate([s.token_ids for s in samples], dtype=np.int64)),
        position_ids=_tensor(np.arange(sum(lengths)) - np.repeat(starts, lengths)),
        lengths=tuple(lengths),
        loss_mask=_tensor(np.concatenate([s.loss_mask for s in samples])),
        rollout_logprobs=_tensor(np.concatenate([s.rollout_logprobs for s in samples])),
        advantages=_tensor(np.repeat(per_sample.numpy(), lengths)),
        token_weights=_tensor(np.repeat(weights, lengths)),
        shared=_shared_prompts(samples),
        lags=None if version is None else _tensor(np.concatenate([_lags(s, version) for s in samples])),
    )


def _lags(sample: Sample, version: int) -> NDArray[np.int64]:
    lags = np.zeros(len(sample.token_ids), np.int64)
    for sampled, start in sample.versions:
        lags[start:] = version - sampled
    return lags


def _shared_prompts(samples: Sequence[Sample]) -> tuple[tuple[int, int], ...]:
    """Return `TrainBatch.shared`. A prompt is all tokens before the first one in the loss."""
    first: dict[bytes, int] = {}
    shared: list[tuple[int, int]] = []
    for i, sample in enumerate(samples):
        length = sample.prompt_tokens
        owner = first.setdefault(sample.token_ids[:length].tobytes(), i) if length else i
        shared.append((owner, length if owner != i else 0))
    return tuple(shared)


def own_part(batch: TrainBatch, part: int, parts: int) -> TrainBatch:
    """Return the row as rank `part` of the `parts` ranks that share the row sees the loss.

    A part is T / parts tokens. The loss mask keeps the tokens that this part predicts.
    """
    each = batch.token_ids.shape[0] // parts
    mask = torch.zeros_like(batch.loss_mask)
    # Each token predicts the next one, so the slice of predicted tokens lies one position to the right.
    own = slice(part * each + 1, (part + 1) * each + 1)
    mask[own] = batch.loss_mask[own]
    return replace(batch, loss_mask=mask)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


def _filler(tokens: int) -> Sample:
    return Sample(
        group=0,
        index=0,
        token_ids=np.zeros(tokens, np.int32),
        loss_mask=np.zeros(tokens, np.bool_),
        rollout_logprobs=np.zeros(tokens, np.float32),
    )

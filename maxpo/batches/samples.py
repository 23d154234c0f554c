"""Conversion of scored groups to samples and to a matrix of rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from maxpo.config import AlgorithmConfig
from maxpo.types import Group, ScoredGroup


def unique_fraction(groups: Sequence[ScoredGroup]) -> float:
    """Return the mean of `unique_share` over the groups."""
    return float(np.mean([unique_share(scored.group) for scored in groups]))


def unique_share(group: Group) -> float:
    """Return the number of different completions of a group divided by the group size."""
    return len({c.token_ids.tobytes() for c in group.completions}) / len(group.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt with one valid completion, L tokens in total. Arrays per token are [L]."""

    group: int
    """Row of the advantage in the [G, N] matrix."""
    index: int
    """Column of the advantage in the [G, N] matrix."""
    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    rollout_logprobs: NDArray[np.float32]
    """Log-probability of each token at sampling, in nats. 0 where `loss_mask` is False."""
    versions: tuple[tuple[int, int], ...] = ()
    """Versions of the weights that sampled the tokens, as in `Completion.versions`."""

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens before the first one that contributes to the loss. 0 if none does."""
        return int(self.loss_mask.argmax())

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that contribute to the loss."""
        return int(np.count_nonzero(self.loss_mask))


def training_rewards(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, most: int) -> list[ScoredGroup]:
    """Return the groups as training sees them: with the rules for cut and for long completions.

    Args:
        groups: Scored groups.
        algorithm: The rules.
        most: Limit of tokens, `rollout.max_new_tokens`.
    """
    treated = treat_truncated(groups, algorithm.truncated)
    return penalise_length(treated, algorithm.length_buffer, algorithm.length_penalty, most)


def treat_truncated(groups: Sequence[ScoredGroup], rule: Literal["train", "mask", "zero"]) -> list[ScoredGroup]:
    """Return the groups with the rule for completions that were cut at a limit (`finish_reason` length).

    Such a completion gets the outcome 'truncated'. An invalid completion stays as it is.

    Args:
        groups: Scored groups.
        rule: train: no change. mask: the completion is invalid. zero: its reward is 0, and it is no success.
    """
    return [group if rule == "train" else _without_truncated(group, mask=rule == "mask") for group in groups]


def penalise_length(groups: Sequence[ScoredGroup], buffer: int | None, penalty: float, most: int) -> list[ScoredGroup]:
    """Return the groups with less reward for completions that come near the limit of tokens.

    A completion of L sampled tokens loses `penalty` times (L - (most - buffer)) / buffer, within 0 and 1. DAPO
    (arXiv 2503.14476), eq. 13. Success stays as it is.

    Args:
        groups: Scored groups.
        buffer: Number of tokens before the limit in which the reward falls. None: no change.
        penalty: Reward that a completion of full length loses.
        most: Limit of tokens.
    """
    if buffer is None:
        return list(groups)
    penalised: list[ScoredGroup] = []
    for group in groups:
        over = [(c.loss_tokens - most + buffer) / buffer for c in group.group.completions]
        lost = tuple(-penalty * min(1.0, max(0.0, o)) * ok for o, ok in zip(over, group.valid, strict=True))
        rewards = tuple(reward + less for reward, less in zip(group.rewards, lost, strict=True))
        penalised.append(replace(group, rewards=rewards, reward_parts={**group.reward_parts, "length_buffer": lost}))
    return penalised


def _without_truncated(scored: ScoredGroup, *, mask: bool) -> ScoredGroup:
    cut = [ok and c.finish_reason == "length" for c, ok in zip(scored.group.completions, scored.valid, strict=True)]
    return replace(
        scored,
        valid=tuple(ok and not (mask and is_cut) for ok, is_cut in zip(scored.valid, cut, strict=True)),
        rewards=tuple(0.0 if is_cut else r for r, is_cut in zip(scored.rewards, cut, strict=True)),
        successes=tuple(s and not is_cut for s, is_cut in zip(scored.successes, cut, strict=True)),
        outcomes=tuple("truncated" if is_cut else o for o, is_cut in zip(scored.outcomes, cut, strict=True)),
    )


def reward_matrix(
    groups: Sequence[ScoredGroup], device: torch.device
) -> tuple[Float[Tensor, "G N"], Bool[Tensor, "G N"]]:
    """Return rewards and validity of the groups as matrices. The reward of an invalid sample is a filler, 0."""
    valid = torch.tensor([group.valid for group in groups], dtype=torch.bool, device=device)
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64, device=device)
    return torch.where(valid, rewards, 0.0), valid


def valid_samples(groups: Sequence[ScoredGroup]) -> list[Sample]:
    """Return the valid samples of all groups in order, without those that have an empty completion."""
    return [
        sample
        for g, scored in enumerate(groups)
        for sample in samples_of(g, scored.group)
        if scored.valid[sample.index]
    ]


def samples_of(g: int, group: Group) -> Iterator[Sample]:
    """Yield every completion that has tokens, with its prompt. `g` is the number of the group."""
    prompt = np.asarray(group.prompt.token_ids, np.int32)
    for i, completion in enumerate(group.completions):
        length = len(completion.token_ids)
        if not length:
            continue
        mask = np.zeros(len(prompt) + length, np.bool_)
        mask[len(prompt) :] = True if completion.loss_mask is None else completion.loss_mask
        logprobs = np.zeros(len(mask), np.float32)
        logprobs[len(prompt) :] = completion.logprobs
        yield Sample(
            group=g,
            index=i,
            token_ids=np.concatenate([prompt, completion.token_ids]),
            loss_mask=mask,
            rollout_logprobs=logprobs,
            versions=tuple((version, len(prompt) + start) for version, start in completion.versions),
        )

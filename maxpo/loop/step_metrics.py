"""Metrics of the sampled groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from maxpo.batches.samples import reward_matrix, unique_fraction
from maxpo.config import AlgorithmConfig
from maxpo.errors import RunError
from maxpo.estimators.mixing import parameters_of
from maxpo.estimators.pass_at_k import max_at_k
from maxpo.estimators.shadow import advantage_metrics, shadow_metrics
from maxpo.loop.selection import AssessedGroup
from maxpo.types import Completion, Mix, ScoredGroup, Ticket

OUTCOMES = ("too_long", "timeout", "undecided", "error", "died", "abort")
"""Outcomes of scoring other than 'ok'. Each masks the sample, except 'too_long' of `length` and `environment`."""


def valid_successes(groups: Sequence[ScoredGroup]) -> dict[str, list[bool]]:
    """Return for each valid completion True if it is a success, by prompt id."""
    by_prompt: dict[str, list[bool]] = {}
    for group in groups:
        successes = [s for s, ok in zip(group.successes, group.valid, strict=True) if ok]
        by_prompt.setdefault(group.group.prompt.prompt_id, []).extend(successes)
    return by_prompt


def usable_metrics(usable: Sequence[AssessedGroup], algorithm: AlgorithmConfig, mix: Mix) -> dict[str, float]:
    """Return the metrics of the advantages and of the shadow estimators, over groups with enough valid samples."""
    if not usable:
        return {}
    rewards, valid = reward_matrix([group.scored for group in usable], torch.device("cpu"))
    advantages = torch.tensor([group.advantages for group in usable], dtype=torch.float64)
    own = advantage_metrics(advantages, rewards, valid)
    k = torch.tensor([group.k for group in usable])
    shadows = shadow_metrics(algorithm.shadow, advantages, rewards, k, valid, parameters_of(algorithm, mix))
    return {f"advantage/{name}": value for name, value in own.items()} | shadows


def sampling_metrics(groups: Sequence[ScoredGroup], k: int, sampling_s: float) -> dict[str, float]:
    """Return the metrics of all sampled groups, before any group is dropped.

    Args:
        groups: At least one scored group.
        k: K of the metric `reward/max@K`.
        sampling_s: Seconds of sampling.
    """
    completions = [c for group in groups for c in group.group.completions]
    sampled = sum(c.loss_tokens for c in completions)
    outcomes = Counter(outcome.partition(":")[0] for group in groups for outcome in group.outcomes)
    return (
        completion_metrics(completions)
        | reward_metrics(groups, k)
        | {
            "groups/sampled": float(len(groups)),
            "completions/unique": unique_fraction(groups),
        }
        | ({"throughput/generate_tokens_per_s": sampled / sampling_s} if sampling_s else {})
        | {f"verifier/{name}": float(outcomes[name]) for name in OUTCOMES}
    )


def completion_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Return the metrics of lengths and turns."""
    count = len(completions)
    tokens = sum(len(c.token_ids) for c in completions)
    metrics = {
        "completions/tokens_mean": tokens / count,
        "completions/truncated": sum(c.finish_reason == "length" for c in completions) / count,
    }
    if turns := [c.episode.turns for c in completions if c.episode is not None]:
        metrics["environment/turns"] = sum(turns) / len(turns)
        metrics["environment/tokens"] = (tokens - sum(c.loss_tokens for c in completions)) / count
    return metrics


def staleness_metrics(tickets: Sequence[Ticket], step: int, version: int, limit: int) -> dict[str, float]:
    """Return the metrics of the age of what a step trains on, in versions of the weights.

    Args:
        tickets: The sampled groups of the step.
        step: The step.
        version: Version of the current weights.
        limit: `pipeline.max_staleness`.

    Raises:
        RunError: A token is older than `limit`. The buffer does not allow this, so it is a fault of the program.
    """
    completions = [c for ticket in tickets if ticket.group for c in ticket.group.completions if len(c.token_ids)]
    lags = Counter[int]()
    for completion in completions:
        for lag, tokens in completion.loss_tokens_by_lag(version).items():
            lags[lag] += tokens
    if any(not 0 <= lag <= limit for lag in lags):
        raise RunError(
            f"step {step}: tokens of the versions {sorted(version - lag for lag in lags)} of the weights are trained "
            f"at version {version}, and pipeline.max_staleness = {limit}. This is a fault of maxpo: please report it"
        )
    total = max(1, sum(lags.values()))
    metrics = {
        "staleness/mean": sum(lag * tokens for lag, tokens in lags.items()) / total,
        "staleness/max": float(max(lags, default=0)),
    }
    if limit:
        spans = sum(c.min_weight_version < c.max_weight_version for c in completions)
        metrics |= {f"staleness/lag_{lag}": lags[lag] / total for lag in range(limit + 1)}
        metrics |= {
            "staleness/spans": spans / max(1, len(completions)),
            "staleness/admitted_mean": sum(step - ticket.step for ticket in tickets) / len(tickets),
        }
    return metrics


def reward_metrics(groups: Sequence[ScoredGroup], k: int) -> dict[str, float]:
    """Return the mean reward, the unbiased max@K, and the mean of each named part of the reward."""
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    metrics = {"reward/mean": float(rewards.sum() / valid.sum().clamp(min=1))}
    at_k, has_k = max_at_k(rewards, k, valid)
    if bool(has_k.any()):
        metrics[f"reward/max@{k}"] = float(at_k[has_k].mean())
    for part in {name for group in groups for name in group.reward_parts}:
        values = [v for g in groups for v, ok in zip(g.reward_parts.get(part, ()), g.valid, strict=False) if ok]
        metrics[f"reward/{part}"] = sum(values) / max(1, len(values))
    return metrics

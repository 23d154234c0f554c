"""Figures of the sampled groups for the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from maxpo.batches.samples import reward_matrix, unique_fraction
from maxpo.config import AlgorithmConfig
from maxpo.estimators.pass_at_k import max_at_k
from maxpo.estimators.shadow import advantage_metrics, shadow_metrics
from maxpo.loop.selection import AssessedGroup
from maxpo.types import ScoredGroup

OUTCOMES = ("too_long", "timeout", "error", "died", "abort")
"""Verdicts other than 'ok'; all but 'too_long' mask the sample."""


def valid_rewards(groups: Sequence[ScoredGroup]) -> dict[str, list[float]]:
    """Rewards of the valid completions, by prompt id."""
    found: dict[str, list[float]] = {}
    for group in groups:
        rewards = [r for r, ok in zip(group.rewards, group.valid, strict=True) if ok]
        found.setdefault(group.group.prompt.prompt_id, []).extend(rewards)
    return found


def usable_metrics(usable: Sequence[AssessedGroup], algorithm: AlgorithmConfig) -> dict[str, float]:
    """The advantages of every group with enough valid samples, and what the shadow estimators say of them."""
    if not usable:
        return {}
    rewards, valid = reward_matrix([j.scored for j in usable], torch.device("cpu"))
    advantages = torch.tensor([j.advantages for j in usable], dtype=torch.float64)
    own = advantage_metrics(advantages, rewards, valid)
    shadows = shadow_metrics(
        algorithm.shadow, advantages, rewards, torch.tensor([j.k for j in usable]), valid, algorithm.objective
    )
    return {f"advantage/{name}": value for name, value in own.items()} | shadows


def sampling_metrics(groups: Sequence[ScoredGroup], k: int, generate_s: float, version: int) -> dict[str, float]:
    """What the sampled groups say, before anything is dropped."""
    completions = [c for group in groups for c in group.group.completions]
    tokens = sum(len(c.token_ids) for c in completions)
    sampled = sum(sum(c.loss_mask) for c in completions)
    turns = [c.episode.turns for c in completions if c.episode is not None]
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    outcomes = Counter(outcome.partition(":")[0] for group in groups for outcome in group.outcomes)
    stale = [c for c in completions if c.token_ids and c.min_weight_version < version]
    metrics = {
        "reward/mean": float(rewards.sum() / valid.sum().clamp(min=1)),
        "groups/sampled": float(len(groups)),
        "completions/tokens_mean": tokens / len(completions),
        "completions/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "completions/unique": unique_fraction(groups),
        "completions/stale": len(stale) / len(completions),
        "throughput/generate_tokens_per_s": sampled / generate_s,
    }
    if turns:
        metrics["environment/turns"] = sum(turns) / len(turns)
        metrics["environment/tokens"] = (tokens - sampled) / len(completions)
    at_k, has_k = max_at_k(rewards, k, valid)
    if bool(has_k.any()):
        metrics[f"reward/max@{k}"] = float(at_k[has_k].mean())
    for part in {name for group in groups for name in group.reward_parts}:
        values = [v for g in groups for v, ok in zip(g.reward_parts.get(part, ()), g.valid, strict=False) if ok]
        metrics[f"reward/{part}"] = sum(values) / max(1, len(values))
    return metrics | {f"verifier/{name}": float(outcomes[name]) for name in OUTCOMES}

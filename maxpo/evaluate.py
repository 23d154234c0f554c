"""Evaluation on held-out prompts: unbiased pass@k and max@k with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float

from maxpo.batching import reward_matrix
from maxpo.metrics import max_at_k
from maxpo.types import ScoredGroup

BOOTSTRAP_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """What an evaluation found."""

    objective: str
    """'pass' where every reward is 0 or 1, else 'max'."""
    at_k: dict[int, Estimate]
    mean: float
    solved: float
    unique: float
    prompts: int
    dropped_prompts: int
    tokens: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EvalReport:
        """The report that `dataclasses.asdict` took apart, also by way of JSON."""
        at_k: Any = {int(k): Estimate(**estimate) for k, estimate in values["at_k"].items()}
        return cls(**(values | {"at_k": at_k}))

    def metrics(self) -> dict[str, float]:
        """The report as metrics."""
        values = {
            "eval/mean": self.mean,
            "eval/solved": self.solved,
            "eval/unique": self.unique,
            "eval/dropped_prompts": float(self.dropped_prompts),
        }
        for k, estimate in self.at_k.items():
            name = f"eval/{self.objective}@{k}"
            values |= {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
        return values


def bootstrap(per_prompt: Float[np.ndarray, " P"], seed: int = 0) -> Estimate:
    """Mean and percentile interval from resampling *prompts*: completions of a prompt are not independent problems."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(per_prompt), size=(BOOTSTRAP_RESAMPLES, len(per_prompt)))
    means = per_prompt[picks].mean(1)
    quantiles = cast("list[float]", np.quantile(means, [0.025, 0.975]).tolist())  # pyright: ignore
    return Estimate(value=float(per_prompt.mean()), low=quantiles[0], high=quantiles[1])


def report(groups: Sequence[ScoredGroup], ks: Sequence[int]) -> EvalReport:
    """Estimates from scored groups of equal size.

    A prompt with fewer valid samples than the largest k is left out of every k, so that all are over the same
    prompts; the number is reported.

    Raises:
        ValueError: no prompt has enough valid samples.
    """
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    enough = valid.sum(1) >= max(ks)
    if not bool(enough.any()):
        raise ValueError(f"no evaluation prompt has {max(ks)} valid samples")
    rewards, valid = rewards[enough], valid[enough]
    binary = bool((valid <= ((rewards == 0) | (rewards == 1))).all())
    kept = [group for group, wanted in zip(groups, enough, strict=True) if bool(wanted)]
    return EvalReport(
        objective="pass" if binary else "max",
        at_k={k: bootstrap(max_at_k(rewards, k, valid)[0].numpy()) for k in ks},
        mean=float(rewards.sum() / valid.sum()),
        solved=float(((rewards >= 1) & valid).any(1).float().mean()),
        unique=unique_fraction(kept),
        prompts=len(kept),
        dropped_prompts=len(groups) - len(kept),
        tokens=sum(len(c.token_ids) for group in groups for c in group.group.completions),
    )


def unique_fraction(groups: Sequence[ScoredGroup]) -> float:
    """Different completions of a group divided by its size, mean over groups."""
    return float(np.mean([len({c.token_ids for c in g.group.completions}) / len(g.group.completions) for g in groups]))

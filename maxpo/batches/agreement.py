"""Agreement of two sources of log-probabilities of the same tokens: an engine and the learner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maxpo.batches.samples import Sample
from maxpo.types import Group

ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative rounding of each number format."""
FACTOR = 32.0
"""Allowed mean difference of log-probabilities at temperature 1, in multiples of the rounding. Measured: about 9 with
bfloat16, for a random model of 8 layers."""
SMALLEST = 2e-3
"""Mean difference in nats that is always allowed. float32 has other sources of error than rounding once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Differences of log-probabilities in nats, over sampled tokens."""

    tokens: int
    mean: float
    largest: float
    kl: float
    """Mean of exp(d) - 1 - d, an estimate of KL(sampler, learner), for d = learner - sampler."""
    worst: int
    """Index of the sample with the largest difference. -1: no tokens."""
    position: int
    """Position of the largest difference in that sample, from 0, prompt included. -1: no tokens."""

    @classmethod
    def of(cls, samples: Sequence[Sample], scores: Sequence[Sequence[float]]) -> Agreement:
        """Compare the log-probabilities of the samples with those of the learner, where the loss mask is True."""
        differences = [
            (index, position, score - logprob)
            for index, (sample, values) in enumerate(zip(samples, scores, strict=True))
            for position, (score, logprob, ours) in enumerate(
                zip(values, sample.rollout_logprobs, sample.loss_mask, strict=True)
            )
            if ours
        ]
        sizes = [abs(d) if math.isfinite(d) else math.inf for _, _, d in differences]
        count = max(1, len(sizes))
        worst = max(range(len(sizes)), key=sizes.__getitem__, default=-1)
        return cls(
            tokens=len(sizes),
            mean=sum(sizes) / count,
            largest=max(sizes, default=0.0),
            kl=sum(math.expm1(min(d, 50.0)) - d if math.isfinite(d) else math.inf for _, _, d in differences) / count,
            worst=differences[worst][0] if worst >= 0 else -1,
            position=differences[worst][1] if worst >= 0 else -1,
        )


def allowed_mean(formats: Sequence[str], run_to_run: float, temperature: float) -> float:
    """Return the largest mean difference in nats that rounding explains.

    Logits are divided by the temperature, and so are their errors. At low temperatures most sampled tokens have a
    probability near 1, which an error of the logits hardly changes. Measured with bfloat16, mean difference against
    that at temperature 1: 0.5 at temperature 2, 1.6 at 0.5, 1.8 at 0.25, 2.4 at 0.1.

    Args:
        formats: number formats of engine and learner. The coarsest counts.
        run_to_run: mean difference of the engine from itself, for the same tokens in another batch.
        temperature: sampling temperature, which the log-probabilities include.
    """
    rounding = FACTOR * max(ROUNDING[name] for name in formats)
    return max(SMALLEST, rounding / max(temperature, math.sqrt(temperature)), 4 * run_to_run)


def samples_of(groups: Sequence[Group]) -> list[Sample]:
    """Return every completion that has tokens, with its prompt."""
    return [
        Sample(
            group=g,
            index=i,
            token_ids=group.prompt.token_ids + c.token_ids,
            loss_mask=(False,) * len(group.prompt.token_ids) + c.loss_mask,
            rollout_logprobs=(0.0,) * len(group.prompt.token_ids) + c.logprobs,
        )
        for g, group in enumerate(groups)
        for i, c in enumerate(group.completions)
        if c.token_ids
    ]

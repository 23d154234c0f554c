"""Agreement of two sources of log-probabilities of the same tokens: an engine and the learner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maxpo.batches.samples import Sample

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
        ours = [np.flatnonzero(sample.loss_mask) for sample in samples]
        differences = np.concatenate(
            [
                np.asarray(values, np.float64)[at] - sample.rollout_logprobs[at]
                for sample, values, at in zip(samples, scores, ours, strict=True)
            ]
            or [np.zeros(0)]
        )
        finite = np.isfinite(differences)
        sizes = np.where(finite, np.abs(differences), math.inf)
        bounded = np.where(finite, differences, 0.0)
        kl = np.where(finite, np.expm1(np.minimum(bounded, 50.0)) - bounded, math.inf)
        worst = int(sizes.argmax()) if len(sizes) else -1
        index = np.repeat(np.arange(len(samples)), [len(at) for at in ours])
        return cls(
            tokens=len(sizes),
            mean=float(sizes.mean()) if len(sizes) else 0.0,
            largest=float(sizes.max(initial=0.0)),
            kl=float(kl.mean()) if len(sizes) else 0.0,
            worst=int(index[worst]) if worst >= 0 else -1,
            position=int(np.concatenate(ours)[worst]) if worst >= 0 else -1,
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

"""Names of the estimators, without torch."""

from __future__ import annotations

import math

ADVANTAGE_NAMES = (
    *("maxpo", "canonical", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "interpolated", "kappa"),
    *("passk_training", "top1_gap", "rloo", "grpo", "dr_grpo", "maxrl"),
)
"""Keys of `maxpo.estimators.advantages.ADVANTAGES`, repeated here because that module imports torch."""

BEYOND_K = {
    **{"maxpo": 1, "canonical": 1, "pkpo": 0, "pkpo_loo": 1, "pkpo_loo_minus_one": 0},
    **{"interpolated": 0, "kappa": 0, "passk_training": 1},
}
"""Name of each estimator that uses K -> number of samples that a group needs beyond K."""

UNBIASED = ("maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "interpolated", "kappa")
"""Estimators whose expectation is the gradient of max@K, scale included. So their variances compare."""

WITH_OBJECTIVE = ("maxpo", "pkpo_loo_minus_one", "interpolated")
"""Estimators that take `algorithm.objective`. The others are for `max`, or for objectives of their own."""


def fixed_lam(lam: str) -> float | None:
    """Return the number in the setting `algorithm.lam`, or None for `v`.

    Raises:
        ValueError: It is neither a finite number nor `v`.
    """
    if lam == "v":
        return None
    if not math.isfinite(number := float(lam)):
        raise ValueError(f"lam = {lam} is not finite")
    return number

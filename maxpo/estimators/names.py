"""Names of the estimators, without torch."""

from __future__ import annotations

ADVANTAGE_NAMES = (
    *("maxpo", "canonical", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "passk_training", "top1_gap"),
    *("rloo", "grpo", "dr_grpo", "maxrl"),
)
"""Keys of `maxpo.estimators.advantages.ADVANTAGES`, repeated here because that module imports torch."""

BEYOND_K = {"maxpo": 1, "canonical": 1, "pkpo": 0, "pkpo_loo": 1, "pkpo_loo_minus_one": 0, "passk_training": 1}
"""Name of each estimator that uses K -> number of samples that a group needs beyond K."""

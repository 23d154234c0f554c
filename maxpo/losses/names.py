"""Names of the losses, without torch."""

from __future__ import annotations

LOSS_NAMES = ("ppo_clip", "dual_clip", "gspo", "cispo", "sapo", "policy_gradient")
"""Keys of `maxpo.losses.policy.LOSSES`, repeated here because that module imports torch."""

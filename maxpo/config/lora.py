"""The section `learner.lora`: train a low-rank adapter instead of the whole model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class LoraConfig:
    """A LoRA adapter: a target's weight W becomes W + (alpha / rank) B A, and A and B alone are trained."""

    rank: int = 0
    """Rows of A and columns of B; 0: no adapter, the whole model is trained. Needs the extra `maxpo[lora]`."""
    alpha: float = 32.0
    """The adapter counts alpha / rank. No effect while `rank` is 0."""
    targets: list[str] = field(default_factory=list[str])
    """Last names of the linear layers that get an adapter, such as [q_proj, v_proj]; []: all but the head. No effect
    while `rank` is 0."""

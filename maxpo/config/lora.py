"""Settings of the section `learner.lora`: train a low-rank adapter in place of the full model."""

from dataclasses import dataclass, field
from typing import Annotated

from maxpo.config.ranges import FACTOR, Must, between


@dataclass(kw_only=True)
class LoraConfig:
    """A LoRA adapter: a target's weight W becomes W + (alpha / rank) B A, and only A and B are trained."""

    rank: Annotated[int, between(0, 10**5)] = 0
    """Number of rows of A and of columns of B. 0: no adapter, the full model is trained. Needs the extra
    `maxpo[lora]`."""
    alpha: Annotated[float, FACTOR] = 32.0
    """Numerator of the adapter's scale alpha / rank. No effect while `rank` is 0."""
    targets: Annotated[
        list[str],
        Must(
            lambda v: all(name.isidentifier() for name in v) and len(set(v)) == len(v),
            "Must be different last names of layers, without dots, such as [q_proj, v_proj].",
        ),
    ] = field(default_factory=list[str])
    """Last names of the linear layers that get an adapter, such as [q_proj, v_proj]. []: all linear layers except
    the head. No effect while `rank` is 0."""

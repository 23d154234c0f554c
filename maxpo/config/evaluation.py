"""Settings of the section `eval`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class EvalConfig:
    """Evaluation on held-out prompts."""

    every: int = 0
    """Evaluate every this many steps; 0: not between."""
    at_start: bool = True
    """Evaluate before the first step."""
    at_end: bool = True
    """Evaluate after the last step."""
    prompts: int = 128
    """Held-out prompts."""
    samples: int = 32
    """Completions per held-out prompt, n of the unbiased pass@k."""
    k: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    """The k of pass@k and max@k; each at most `samples`."""
    greedy: bool = False
    """Also complete each held-out prompt once with the likeliest tokens, for `eval/greedy`."""

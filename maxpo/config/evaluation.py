"""Settings of the section `eval`."""

from dataclasses import dataclass, field
from typing import Annotated

from maxpo.config.ranges import BILLION, COUNT_OR_NONE, between, each


@dataclass(kw_only=True)
class EvalConfig:
    """Evaluation on held-out prompts."""

    every: Annotated[int, COUNT_OR_NONE] = 0
    """Number of steps between two evaluations. 0: no evaluation between the first and the last step."""
    at_start: bool = True
    """Evaluate before the first step."""
    at_end: bool = True
    """Evaluate after the last step."""
    prompts: Annotated[int, between(1, 10**7)] = 128
    """Number of held-out prompts: the first ones of a file, or all if the file has fewer."""
    samples: Annotated[int, between(1, 10**5)] = 32
    """Completions per held-out prompt, n of the unbiased pass@k."""
    k: Annotated[list[int], each(1, BILLION, least=1)] = field(default_factory=lambda: [1, 4, 8, 16])
    """Values of k of pass@k and max@k, each at most `samples`."""
    greedy: bool = False
    """Also complete each held-out prompt once with greedy decoding, for `eval/greedy`."""

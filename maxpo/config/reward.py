"""Settings of the section `reward`."""

from dataclasses import dataclass, field
from typing import Annotated

from omegaconf import MISSING

from maxpo.config.ranges import COUNT, PROCESSES, SECONDS, Arguments, Must, between

COMBINED = "combined"
"""Name of the verifier that adds up others."""
ENVIRONMENT = "environment"
"""Name of the verifier that leaves the reward to the environment."""


@dataclass(kw_only=True)
class RewardConfig:
    """Scoring of answers."""

    verifier: str = MISSING
    """Name of the verifier, one of `maxpo.rewards.registry.REWARDS`, or your own function as `package.module:function`,
    or `combined`, which adds up the verifiers in `parts`. See `docs/verifiers.md`."""
    parts: Arguments = field(default_factory=Arguments)
    """Verifiers of `combined` and their weights, such as `{math: 1.0, format: 0.2}`. The reward is the weighted sum.
    An answer is a success if every part of positive weight says so, whatever the weights; `format` and `length` have no
    opinion. Each part is also logged unweighted; a part of weight 0 is only logged."""
    args: Arguments = field(default_factory=Arguments)
    """Arguments of single verifiers, such as `{numeric: {tolerance: 1e-3}}`. Arguments of verifiers that are not in use
    have no effect."""
    by_source: Arguments = field(default_factory=Arguments)
    """Other verifiers for the prompts of single sources, such as `{gsm8k: numeric}`. All other prompts have
    `verifier`."""
    group: str | None = None
    """Your own function that sees all completions of a prompt and gives them their rewards, such as
    `file.py:function` (`docs/extend.md`). It has the rewards of the verifiers. In training only: evaluations keep the
    rewards of the verifiers, which also decide on success. null: none."""
    workers: Annotated[int, PROCESSES] = 1
    """Number of verifier processes."""
    timeout_s: Annotated[float, SECONDS] = 5.0
    """Timeout of one answer, seconds. After the timeout the verifier's process is killed and the sample is invalid
    (masked)."""
    max_chars: Annotated[int | None, COUNT] = None
    """Longest answer that is read, in characters. Longer answers are counted and invalid (masked), except that
    `length` gives its full penalty. null: 16 for each token of `rollout.max_new_tokens`, and at least 20000."""
    code_case_s: Annotated[float, SECONDS] = 4.0
    """Time limit of a program for one test case, seconds (wall-clock time, and processor time rounded up). Only for the
    verifier `code`."""
    code_memory_mib: Annotated[int, between(128, 10**7, "Python itself needs 128")] = 1024
    """Memory limit of a program (address space), MiB. Only for the verifier `code`."""
    code_max_cases: Annotated[int, COUNT] = 20
    """Largest number of test cases of a reference that are run; later cases are left out. Only for the verifier
    `code`."""

    code_float_tolerance: Annotated[float, Must(lambda v: 0 <= v < 1, "Must be at least 0 and below 1.")] = 1e-6
    """Largest difference between an expected number with a fraction and that of a program: relative, or absolute if
    this is larger. Integers must be exact. Only for the verifier `code`."""

    def longest(self, max_new_tokens: int) -> int:
        """Return the number of characters of the longest answer that is read, given `rollout.max_new_tokens`."""
        return max(20000, 16 * max_new_tokens) if self.max_chars is None else self.max_chars

"""How answers are judged: the section `reward` of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

COMBINED = "combined"
"""The verifier that adds up others."""
ENVIRONMENT = "environment"
"""The verifier that leaves the reward to the environment."""


@dataclass(kw_only=True)
class RewardConfig:
    """How answers are judged."""

    verifier: str = MISSING
    """Name of the verifier, one of `maxpo.rewards.registry.REWARDS`, or a function of your own as
    `package.module:function`; or `combined`, which adds up those in `parts`. `docs/verifiers.md` describes them."""
    parts: dict[str, Any] = field(default_factory=dict[str, Any])
    """Verifiers of `combined` and their weights, such as `{math: 1.0, format: 0.2}`. The reward is the weighted sum of
    theirs; each is logged by itself, unweighted, and one of weight 0 only logged."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of single verifiers, such as `{numeric: {tolerance: 1e-3}}`. Those of verifiers that are not in use do
    nothing."""
    by_source: dict[str, Any] = field(default_factory=dict[str, Any])
    """Another verifier for the prompts of a source, such as `{gsm8k: numeric}`. The others have `verifier`."""
    workers: int = 1
    """Verifier processes."""
    timeout_s: float = 5.0
    """Seconds that one answer may take; then its process is killed and the sample is invalid (masked)."""
    max_chars: int = 20000
    """Longer answers are not parsed: they get reward 0 (of `length` its whole penalty) and are counted."""
    code_case_s: float = 4.0
    """Seconds (of the clock, and rounded up of processor time) that a program may take for one test case. Only for the
    verifier `code`, as the next two."""
    code_memory_mib: int = 1024
    """Memory (address space, MiB) of a program."""
    code_max_cases: int = 20
    """Test cases of a reference that are run, the first ones."""

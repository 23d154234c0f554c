"""How answers are judged: the section `reward` of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass(kw_only=True)
class RewardConfig:
    """How answers are judged."""

    verifier: str = MISSING
    """Name of the verifier, one of `maxpo.rewards.REWARDS`, or a function of your own as `package.module:function`."""
    workers: int = 1
    """Verifier processes."""
    timeout_s: float = 5.0
    """Seconds that one answer may take; then its process is killed and the sample is invalid (masked)."""
    max_chars: int = 20000
    """Longer answers are not parsed: they get reward 0 and are counted."""

"""Turns with an environment: the section `environment` of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class EnvironmentConfig:
    """What answers the policy between its turns; without `name` every completion is one turn."""

    name: str | None = None
    """Environment, one of `maxpo.environments.registry.ENVIRONMENTS`, or a class of your own as `package.module:Class`.
    The whole episode, observations included, has `rollout.max_new_tokens` tokens. Its reward is the sum of those of
    its steps and of the one that `reward.verifier` gives the last turn; the verifier `environment` adds none.
    `docs/environments.md` says more."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the environment, such as {opening: "<calc>"}."""
    max_turns: int = 4
    """Turns of the policy after which the episode ends, whatever the environment says."""
    stop: list[str] = field(default_factory=list[str])
    """Texts that end a turn, besides the end of sequence; they stay part of it."""
    observation_role: str | None = None
    """Observations are sent as a message of this role (user, tool) through the tokenizer's chat template; null: as
    plain text that follows the turn."""
    timeout_s: float = 5.0
    """Seconds that one step may take; then its process is killed and the completion is invalid (masked)."""
    workers: int = 1
    """Environment processes of each rollout worker."""

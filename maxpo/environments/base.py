"""Types of environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The reply of an environment to one turn of the policy."""

    observation: str = ""
    """Text that the policy reads next. Empty if the episode is over."""
    reward: float = 0.0
    """Rewards of an episode are added up."""
    done: bool = False
    """True if the episode is over."""
    success: bool | None = None
    """True if the episode is a success as it stands, False if not. Only the value of its last step counts. None: no
    opinion, so that the verifier decides or, if it has no opinion either, the total reward (1 or more)."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers for the log, added up over an episode, such as the calls of a tool."""


class Environment(Protocol):
    """The two methods of an environment; its settings are the keyword-only arguments of its constructor."""

    def reset(self, prompt: str, reference: Any, seed: int) -> None:
        """Begin an episode.

        Args:
            prompt: Text that the policy has read.
            reference: Reference of the prompt's row, as for a verifier.
            seed: The same for all completions of a group, which must have the same problem to be compared. Different
                in each training step, and the same in all evaluations.
        """
        ...

    def step(self, completion: str) -> Step:
        """Answer the text of the policy's turn. An exception masks the completion, and is counted."""
        ...

"""What an environment is and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an environment says to one turn of the policy."""

    observation: str = ""
    """What the policy reads next; nothing where the episode is over."""
    reward: float = 0.0
    """Rewards of an episode are added up."""
    done: bool = False
    """The episode is over."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers for the log, added up over an episode, such as the calls of a tool."""


class Environment(Protocol):
    """The two methods of an environment; its settings are the keyword-only arguments of its constructor."""

    def reset(self, prompt: str, reference: Any, seed: int) -> None:
        """Begin an episode.

        Args:
            prompt: What the policy has read.
            reference: Of the prompt's row, as a verifier gets it.
            seed: The same for all completions of a group, which must have the same problem to be compared; another
                one in each step of the training, and the same in all evaluations.
        """
        ...

    def step(self, completion: str) -> Step:
        """Answer the text of the policy's turn. What it raises masks the completion, and is counted."""
        ...

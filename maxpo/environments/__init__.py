"""Environments: what answers the policy between its turns, such as a tool or a game.

An environment is a class with `reset` and `step`. One object goes through one episode. It runs in killable processes
(`rollout/episodes.py`) and is carried from one to the next between two steps, so it must be picklable; nothing else of
it outlives a step. This package imports nothing heavy.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from maxpo.rewards.arguments import mistakes


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


# Below the definitions because environments import `Step` from here.
from maxpo.environments import calculator  # noqa: E402

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"calculator": calculator.Calculator}


def find_environment(name: str, args: Mapping[str, Any]) -> Callable[[], Environment]:
    """A constructor of an environment of `ENVIRONMENTS`, or of a class of your own as `package.module:Class`.

    Raises:
        ValueError: There is no such environment, or it does not take these settings, or needs others.
    """
    cls = ENVIRONMENTS[name] if name in ENVIRONMENTS else _own(name)
    if wrong := mistakes(name, cls, args):
        raise ValueError(" ".join(wrong))
    try:
        inspect.signature(cls).bind(**args)
    except TypeError as error:
        raise ValueError(f"{name}: environment.args: {error}") from error
    return functools.partial(cls, **args)


def _own(name: str) -> Callable[..., Environment]:
    module, separator, cls = name.partition(":")
    if not separator:
        raise ValueError(
            f"no environment is called {name!r}: use one of {sorted(ENVIRONMENTS)}, or package.module:Class"
        )
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"environment {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and hasattr(found, "reset") and hasattr(found, "step")):
        raise ValueError(f"environment {name!r} is no class with the methods reset and step")
    return found

"""Checks of the section `environment`, in the form of `configcheck.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from maxpo.config import EnvironmentConfig, RewardConfig
from maxpo.config.reward import ENVIRONMENT
from maxpo.environments.registry import ENVIRONMENTS
from maxpo.plugins import mistakes
from maxpo.rewards.registry import names_in_use

ENVIRONMENT_KEYS = ("environment.name", "environment.args", "environment.stop", "environment.observation_role")
"""Keys that `environment_problems` reads."""
ENVIRONMENT_POSITIVE = ["environment.max_turns", "environment.timeout_s", "environment.workers"]

ENVIRONMENT_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "environment.name",
        lambda v: v in ENVIRONMENTS or ":" in v,
        f"Must be one of {', '.join(ENVIRONMENTS)}, or a class of your own as package.module:Class.",
    ),
    ("environment.stop", lambda v: all(v), "No text may be empty: every turn would end with it."),
)


def environment_problems(environment: EnvironmentConfig, reward: RewardConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that are involved and what is wrong, as far as it can be told without importing a class of yours."""
    if environment.name in ENVIRONMENTS:
        for message in mistakes(environment.name, ENVIRONMENTS[environment.name], environment.args):
            yield ("environment.args", "environment.name"), message
    for key in ("args", "stop", "observation_role"):
        if environment.name is None and getattr(environment, key):
            yield (f"environment.{key}", "environment.name"), "Does nothing without environment.name: set it too."
    if environment.name is None and ENVIRONMENT in names_in_use(reward):
        message = "The verifier environment leaves the reward to an environment: set environment.name too."
        yield ("environment.name", "reward.verifier"), message

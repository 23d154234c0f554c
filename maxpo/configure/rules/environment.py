"""Checks of the section `environment`."""

from __future__ import annotations

from collections.abc import Iterator

from maxpo.config import EnvironmentConfig, RewardConfig
from maxpo.config.reward import ENVIRONMENT
from maxpo.configure.rules import Fault
from maxpo.environments.registry import ENVIRONMENTS
from maxpo.plugins import mistakes
from maxpo.rewards.registry import names_in_use

ENVIRONMENT_KEYS = ("environment.name", "environment.args", "environment.stop", "environment.observation_role")
"""Keys that `environment_problems` reads."""


def environment_problems(environment: EnvironmentConfig, reward: RewardConfig) -> Iterator[Fault]:
    """Yield the problems that can be found without an import of the user's own class."""
    if environment.name in ENVIRONMENTS:
        for message in mistakes(environment.name, ENVIRONMENTS[environment.name], environment.args):
            yield ("environment.args", "environment.name"), message
    for key in ("args", "stop", "observation_role"):
        if environment.name is None and getattr(environment, key):
            yield (f"environment.{key}", "environment.name"), "Does nothing without environment.name: set it too."
    if environment.name is None and ENVIRONMENT in names_in_use(reward):
        message = "The verifier environment leaves the reward to an environment: set environment.name too."
        yield ("environment.name", "reward.verifier"), message

"""Settings of the section `environment`."""

from dataclasses import dataclass, field
from typing import Annotated

from maxpo.config.ranges import COUNT, PROCESSES, SECONDS, Arguments, Must


@dataclass(kw_only=True)
class EnvironmentConfig:
    """The environment that answers the policy between its turns. Without `name` every completion is one turn."""

    name: str | None = None
    """Environment, one of `maxpo.environments.registry.ENVIRONMENTS`, or your own class as `package.module:Class`. The
    complete episode, observations included, has `rollout.max_new_tokens` tokens. The reward of an episode is the sum
    of the rewards of its steps and of the reward that `reward.verifier` gives the last turn; the verifier
    `environment` adds none. See `docs/environments.md`."""
    args: Arguments = field(default_factory=Arguments)
    """Arguments of the environment, such as {opening: "<calc>"}."""
    max_turns: Annotated[int, COUNT] = 4
    """Largest number of turns of the policy. The episode then ends, even if the environment would go on."""
    stop: Annotated[list[str], Must(lambda v: all(v), "No text may be empty: every turn would end with it.")] = field(
        default_factory=list[str]
    )
    """Texts that end a turn, besides the end of sequence. The text stays part of the turn."""
    observation_role: str | None = None
    """Role (user, tool) of the message that carries an observation through the tokenizer's chat template. null:
    observations are plain text that follows the turn."""
    timeout_s: Annotated[float, SECONDS] = 5.0
    """Timeout of one step, seconds. After the timeout the step's process is killed and the completion is invalid
    (masked)."""
    workers: Annotated[int, PROCESSES] = 1
    """Environment processes of each rollout worker."""

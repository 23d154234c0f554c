"""Rewards of a user's function that sees all answers to a prompt at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat, cast

from maxpo.config import RewardConfig
from maxpo.plugins import FUNCTION, find, is_function
from maxpo.types import Prompt

GroupReward = Callable[[Prompt, Sequence[str], Sequence[float | None]], list[float]]
"""Gives all answers to a prompt their rewards. Arguments: prompt, texts, rewards of the verifiers."""

_NONE: dict[str, Callable[..., object]] = {}


def find_group_reward(config: RewardConfig) -> GroupReward | None:
    """Return the function of `reward.group`, or None without one.

    The user's function is called with (prompt text, texts, rewards, reference). A reward is None where a sample is not
    valid. It returns N numbers; those of invalid samples do not matter.

    Raises:
        ValueError: The function cannot be imported.
    """
    if config.group is None:
        return None
    name = config.group
    function = find(name, _NONE, "group reward", form=FUNCTION, fits=is_function, needed="a function")

    def judge(prompt: Prompt, texts: Sequence[str], rewards: Sequence[float | None]) -> list[float]:
        found = list(cast("Sequence[SupportsFloat]", function(prompt.text, texts, rewards, prompt.reference)))
        if len(found) != len(texts):
            raise ValueError(f"{name} returned {len(found)} rewards for {len(texts)} answers")
        numbers = [0.0 if reward is None else float(new) for new, reward in zip(found, rewards, strict=True)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} returned a reward that is not finite")
        return numbers

    return judge

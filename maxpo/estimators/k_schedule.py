"""Schedules of K and of a second estimator's weight over a run, and pass rates of prompts. Pure Python."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from maxpo.config import AlgorithmConfig

PRIOR_SAMPLES = 4.0
"""Number of samples that the pass rate of all prompts counts for in the estimate of one prompt."""
KEPT = 0.5
"""Factor on the earlier counts of a prompt at each new group. Earlier counts lose weight because the policy changes."""


def scheduled_k(algorithm: AlgorithmConfig, step: int, total_steps: int) -> int:
    """Return K of all prompts in `step` (from 1), for every schedule except `adaptive`."""
    match algorithm.k_schedule:
        case "linear":
            first, last = algorithm.k_values
            return round(_line(first, last, step, total_steps))
        case "stepwise":
            return algorithm.k_values[bisect_right(algorithm.k_steps, step)]
        case _:
            return algorithm.k


def mix_weight(weights: Sequence[float], step: int, total_steps: int) -> float:
    """Return the weight of `mix_with` in `step` (from 1): constant for one number, a straight line for two."""
    return _line(weights[0], weights[-1], step, total_steps)


def _line(first: float, last: float, step: int, total_steps: int) -> float:
    return first + (last - first) * (step - 1) / max(1, total_steps - 1)


def adapted_k(pass_rate: float, smallest: int, largest: int) -> int:
    """Return the K with the largest gradient of max@K for a prompt, clamped to smallest .. largest.

    K = ceil(1 / p) - 1 maximises d pass@K / dp = K (1-p)^(K-1). A prompt with rare successes gets a large K, which
    rewards the first success most. A mostly solved prompt gets K = 1, the mean reward.
    """
    if pass_rate * (largest + 1) <= 1:
        return largest
    return min(largest, max(smallest, math.ceil(1 / pass_rate) - 1))


Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class PassRatesState(TypedDict):
    """Counts of `PassRates` as JSON values, each a list of successes and samples."""

    prompts: dict[str, Pair]
    all: Pair


class PassRates:
    """Observed pass rate of each prompt: successes divided by samples.

    A group's K must not depend on the group's own rewards, or the estimate would be biased. So read the rate before the
    group is sampled, and call `observe` after.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self._all = (0.0, 0.0)

    def __call__(self, prompt_id: str) -> float:
        """Return the prompt's rate, shrunk towards the rate of all prompts. 0 before the first observation."""
        successes, samples = self._all
        overall = successes / samples if samples else 0.0
        own, count = self._seen.get(prompt_id, (0.0, 0.0))
        return (own + PRIOR_SAMPLES * overall) / (count + PRIOR_SAMPLES)

    def observe(self, successes: Mapping[str, Sequence[bool]]) -> None:
        """Add the valid samples of one step, given by prompt id: True for a success."""
        total, samples = 0.0, 0
        for prompt_id, values in successes.items():
            own = sum(values)
            before, count = self._seen.get(prompt_id, (0.0, 0.0))
            self._seen[prompt_id] = (KEPT * before + own, KEPT * count + len(values))
            total, samples = total + own, samples + len(values)
        self._all = (KEPT * self._all[0] + total, KEPT * self._all[1] + samples)

    def state_dict(self) -> PassRatesState:
        """Return all counts as plain JSON values."""
        return {"prompts": {name: list(pair) for name, pair in self._seen.items()}, "all": list(self._all)}

    def load_state_dict(self, state: PassRatesState) -> None:
        """Restore the counts that `state_dict` returned."""
        self._seen = {name: (pair[0], pair[1]) for name, pair in state["prompts"].items()}
        self._all = (state["all"][0], state["all"][1])

"""What changes over a run besides the weights: K, a second estimator's weight; and when to evaluate. Pure Python."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from maxpo.config import AlgorithmConfig

PRIOR_SAMPLES = 4.0
"""Samples that the pass rate of all prompts counts for in the estimate of one prompt."""
KEPT = 0.5
"""Share of what was seen of a prompt before that still counts after a new group; the policy has moved since."""


def scheduled_k(algorithm: AlgorithmConfig, step: int, total_steps: int) -> int:
    """K of all prompts in `step` (from 1), for every schedule but `adaptive`."""
    match algorithm.k_schedule:
        case "linear":
            first, last = algorithm.k_values
            return round(_line(first, last, step, total_steps))
        case "stepwise":
            return algorithm.k_values[bisect_right(algorithm.k_steps, step)]
        case _:
            return algorithm.k


def mix_weight(weights: Sequence[float], step: int, total_steps: int) -> float:
    """Weight of `mix_with` in `step` (from 1): constant for one number, a straight line for two."""
    return _line(weights[0], weights[-1], step, total_steps)


def _line(first: float, last: float, step: int, total_steps: int) -> float:
    return first + (last - first) * (step - 1) / max(1, total_steps - 1)


def adapted_k(pass_rate: float, smallest: int, largest: int) -> int:
    """The K for which max@K pulls hardest on a prompt: ceil(1 / p) - 1 maximises d pass@K / dp = K (1-p)^(K-1).

    Rare successes get a large K, which rewards the first one most; a prompt that is mostly solved gets K = 1, the mean
    reward. The result is kept within the bounds.
    """
    if pass_rate * (largest + 1) <= 1:
        return largest
    return min(largest, max(smallest, math.ceil(1 / pass_rate) - 1))


class PassRates:
    """Pass rate of each prompt as far as it was observed; a success is a reward of 1 or more.

    A group's K must not depend on its own rewards, or the estimate would be biased: ask before, `observe` after.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self._all = (0.0, 0.0)

    def __call__(self, prompt_id: str) -> float:
        """The prompt's own rate, pulled towards that of all prompts; 0 before anything was seen."""
        successes, samples = self._all
        overall = successes / samples if samples else 0.0
        own, count = self._seen.get(prompt_id, (0.0, 0.0))
        return (own + PRIOR_SAMPLES * overall) / (count + PRIOR_SAMPLES)

    def observe(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Take in the valid rewards of one step, by prompt id."""
        total, samples = 0.0, 0
        for prompt_id, values in rewards.items():
            successes = sum(value >= 1 for value in values)
            before, count = self._seen.get(prompt_id, (0.0, 0.0))
            self._seen[prompt_id] = (KEPT * before + successes, KEPT * count + len(values))
            total, samples = total + successes, samples + len(values)
        self._all = (KEPT * self._all[0] + total, KEPT * self._all[1] + samples)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {"prompts": {name: list(pair) for name, pair in self._seen.items()}, "all": list(self._all)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._seen = {name: (pair[0], pair[1]) for name, pair in state["prompts"].items()}
        self._all = (state["all"][0], state["all"][1])

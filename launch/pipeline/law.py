"""The law of the asynchronous pipeline: the time of a step for each bound on staleness.

A group that is admitted at the start of step s is trained in step s + S or earlier. So from its admission to the update
of step s + S it has S + 1 steps, less one update, to wait for a slot, to be decoded and to be scored. Weight syncs stop
the engines and come on top:

    step = max(update, sampling with filled slots, (wait + longest completion + scoring + update) / (S + 1)) + sync

The law supposes that enough groups are in flight to fill the slots, with `rollout.overcommit` if lengths vary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launch.pipeline.simulation import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The law for one run. Its bound on staleness, its lookahead and its overcommit have no effect."""

    scenario: Scenario
    mean_length: float
    """Mean length of completions, tokens."""
    longest: float
    """Length of the longest completion of a step, tokens."""

    @property
    def full_s(self) -> float:
        """Seconds of sampling of a step while every slot is filled."""
        return self.scenario.full_s(self.mean_length)

    @property
    def least_s(self) -> float:
        """Seconds of a step without its sync, when no completion is waited for."""
        return max(self.scenario.update_s, self.full_s)

    def latency_s(self, step_s: float) -> float:
        """Return the seconds from the admission of a step's groups to the end of the longest completion.

        Args:
            step_s: Seconds of a step without its sync. In a longer step fewer sequences run at a time.
        """
        run = self.scenario
        sequences = run.prompts * run.samples / run.workers
        tokens = sequences * self.mean_length
        running = tokens * run.token_s / (step_s - tokens * run.sequence_s)
        # Those that find no free slot wait for the ends of others.
        waiting = max(0.0, sequences - (run.slots - running))
        wait_s = waiting * self.mean_length * (run.token_s / run.slots + run.sequence_s)
        return wait_s + self.longest * (run.token_s + running * run.sequence_s)

    def step_s(self, staleness: int) -> float:
        """Return the seconds of a step under a bound on staleness, 1 or more."""

        def needed_s(step_s: float) -> float:
            serial_s = self.latency_s(step_s) + self.scenario.score_s + self.scenario.update_s
            return max(self.least_s, serial_s / (staleness + 1))

        # Longer steps need less, so the fixed point lies between.
        low, high = self.least_s, needed_s(self.least_s)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if needed_s(middle) > middle else (low, middle)
        return high + self.scenario.sync_s

    def useful_staleness(self) -> int:
        """Return the smallest bound from which a larger one gains nothing. At least 1."""
        serial_s = self.latency_s(self.least_s) + self.scenario.score_s + self.scenario.update_s
        return max(1, math.ceil(serial_s / self.least_s) - 1)


def expected_longest(lengths: NDArray[np.int64], completions: int) -> float:
    """Return the expected greatest of lengths drawn from given ones with replacement.

    Args:
        lengths: Lengths to draw from, at least one.
        completions: Number of draws.
    """
    below = (np.arange(lengths.size + 1) / lengths.size) ** completions
    return float(np.sort(lengths) @ np.diff(below))

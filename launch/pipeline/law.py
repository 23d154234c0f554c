"""The law of the asynchronous pipeline: the time of a step for each bound on staleness and each lookahead.

A group that is admitted at the start of step s and trained in step s + n has n + 1 steps, less one update, to wait for
slots, to be decoded and to be scored. Weight syncs stop the engines and come on top. So, for a step without its sync,

    steps of a group = (wait + its longest completion + scoring + update) / step, rounded up

is at most S + 1 for every group, and on average at most A + 1, because (A + 1) steps of groups are in flight. A step
also takes at least as long as the update, and as sampling with filled slots. The least step that fulfils all is the
law. It supposes that a worker holds enough groups to fill its slots: `rollout.overcommit`, if lengths vary.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from launch.pipeline.simulation import Scenario

SAME = 1.05
"""Ratio of two times of a step up to which they count as the same."""


class Law:
    """The law for one run and the lengths of its completions."""

    def __init__(self, scenario: Scenario, lengths: NDArray[np.int64]) -> None:
        """Keep what the law needs.

        Args:
            scenario: The run. Its staleness, lookahead and overcommit have no effect.
            lengths: Sample of lengths of completions, tokens, at least one.
        """
        self._run = scenario
        self._lengths = np.sort(lengths)
        below = np.arange(lengths.size + 1) / lengths.size
        self._share = np.diff(below**scenario.samples)
        """Share of the groups whose longest completion has each length."""
        self.mean_length = float(lengths.mean())
        self.longest = float(self._lengths @ np.diff(below ** (scenario.samples * scenario.prompts)))
        """Expected length of the longest completion of a step."""
        self.full_s = scenario.full_s(self.mean_length)
        """Seconds of sampling of a step while every slot is filled."""
        self.least_s = max(scenario.update_s, self.full_s)
        """Seconds of a step without its sync, if no group is waited for."""
        self._serial_s = scenario.score_s + scenario.update_s

    def step_s(self, staleness: int, lookahead: int) -> float:
        """Return the seconds of a step.

        Args:
            staleness: Bound S.
            lookahead: A, at most S.
        """

        def suffices(step_s: float) -> bool:
            wait_s, token_s = self._latency_s(step_s)
            if wait_s + self.longest * token_s + self._serial_s > (staleness + 1) * step_s:
                return False
            # The groups of a step wait between not at all and the whole wait.
            steps = np.ceil((wait_s / 2 + self._lengths * token_s + self._serial_s) / step_s)
            return lookahead == staleness or bool(np.minimum(steps, staleness + 1) @ self._share <= lookahead + 1)

        low, high = self.least_s, self.least_s
        while not suffices(high):
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if suffices(middle) else (middle, high)
        return high + self._run.sync_s

    def lookahead(self, staleness: int) -> int:
        """Return the smallest lookahead with the speed of lookahead = staleness. At least 1, unless staleness is 0."""
        limit = SAME * self.step_s(staleness, staleness)
        return next(
            ahead for ahead in range(min(1, staleness), staleness + 1) if self.step_s(staleness, ahead) <= limit
        )

    def useful_staleness(self) -> int:
        """Return the smallest bound from which a larger one gains nothing. At least 1."""
        wait_s, token_s = self._latency_s(self.least_s)
        return max(1, math.ceil((wait_s + self.longest * token_s + self._serial_s) / self.least_s) - 1)

    def _latency_s(self, step_s: float) -> tuple[float, float]:
        """Return the longest wait for a slot, and the seconds per token.

        Args:
            step_s: Seconds of a step without its sync. In a longer step fewer sequences run at a time.
        """
        run = self._run
        sequences = run.prompts * run.samples / run.workers
        tokens = sequences * self.mean_length
        running = tokens * run.token_s / (step_s - tokens * run.sequence_s)
        # Those that find no free slot wait for the ends of others.
        waiting = max(0.0, sequences - (run.slots - running))
        wait_s = waiting * replace(run, workers=1, prompts=1, samples=1).full_s(self.mean_length)
        return wait_s, run.token_s + running * run.sequence_s

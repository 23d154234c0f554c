"""A rollout worker whose groups take lognormal times: by longer completions, or by waiting."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from typing import Any

from maxpo.types import Completion, Group, Prompt
from rollout.worker import RolloutWorker

TOKENS, WAIT = "MAXPO_BENCHMARK_TOKENS", "MAXPO_BENCHMARK_WAIT"
"""Environment variables with median, sigma and upper limit of a lognormal distribution, separated by commas."""


def draw(variable: str, seed: object) -> float | None:
    """Return a number of the distribution that an environment variable describes. None: it is not set."""
    if variable not in os.environ:
        return None
    middle, sigma, most = map(float, os.environ[variable].split(","))
    return min(most, middle * random.Random(f"{variable} {seed}").lognormvariate(0.0, sigma))


class LongTailWorker(RolloutWorker):
    """Holds each completion to a random number of tokens, and each group back for a random time."""

    async def start(self, version: int | None = None) -> int:
        """Start the engine, which ignores the end of a sequence if lengths are drawn."""
        pid = await super().start(version)
        llm: Any = self._engine._llm
        generate = llm.generate

        def longer(prompt: Any, params: Any, request_id: str) -> Any:
            params.ignore_eos = TOKENS in os.environ
            return generate(prompt, params, request_id)

        llm.generate = longer
        return pid

    async def generate(
        self, rollout_id: str, prompt: Prompt, n: int, seed: int, limit_s: float, *, greedy: bool = False
    ) -> Group:
        """Sample a group. Each completion is a request of its own, with its own limit of tokens."""
        if TOKENS not in os.environ:
            group = await super().generate(rollout_id, prompt, n, seed, limit_s, greedy=greedy)
        else:
            each: Sequence[list[Completion]] = await asyncio.gather(
                *(
                    self._engine.generate(
                        f"{rollout_id}/{i}",
                        list(prompt.token_ids),
                        1,
                        seed + i,
                        max_tokens=max(1, round(draw(TOKENS, seed + i) or 0)),
                    )
                    for i in range(n)
                )
            )
            group = Group(prompt=prompt, completions=tuple(self._with_text(c) for (c,) in each))
        await asyncio.sleep(draw(WAIT, seed) or 0.0)
        return group

"""Log-probabilities that the learner gives to tokens of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from learner.deepspeed_engine import TrainEngine
from maxpo.batches.packing import own_part, pack, plan_microbatches
from maxpo.batches.samples import Sample
from maxpo.config import LearnerConfig


def score_samples(
    engine: TrainEngine, samples: Sequence[Sample], config: LearnerConfig, temperature: float
) -> list[list[float]]:
    """Return log-probabilities in nats, one list for each sample with a value for each of its tokens.

    The value is 0 for tokens outside the loss mask. Collective: every rank runs all rows, because few samples are
    scored, and ZeRO-3 needs equal numbers of calls.

    Args:
        engine: the engine of the policy.
        samples: prompts with completions.
        config: settings of the learner.
        temperature: sampling temperature.
    """
    shared = config.sequence_parallel
    padded = engine.module.layout != "packed"
    (plan,) = plan_microbatches([len(s.token_ids) for s in samples], config.token_budget, 1, padded=padded)
    scores: list[list[float]] = [[] for _ in samples]
    for row in plan:
        inside = [replace(samples[i], group=0, index=0) for i in row]
        batch = pack(inside, torch.zeros(1, 1), lambda sample: 0.0, multiple=shared)
        mine = own_part(batch, dist.get_rank() % shared, shared).to(engine.device)
        with torch.no_grad():
            logprobs, _ = engine.forward(mine, temperature=temperature, chunk=config.logprob_chunk)
        # Each rank has the values of its part of the row, and zeros elsewhere.
        dist.all_reduce(logprobs)
        values: list[float] = (logprobs * shared / engine.world_size).tolist()  # pyright: ignore[reportUnknownMemberType]
        start = 0
        for i in row:
            scores[i] = values[start : start + len(samples[i].token_ids)]
            start += len(samples[i].token_ids)
    return scores

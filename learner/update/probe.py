"""Gradients of the log-probabilities of single samples, for `maxpo.estimators.probe`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from learner.deepspeed_engine import TrainEngine
from maxpo.batches.packing import pack
from maxpo.batches.samples import Sample, reward_matrix, samples_of
from maxpo.config import AlgorithmConfig
from maxpo.estimators.mixing import parameters_of
from maxpo.estimators.probe import (
    SIZED,
    ProbePart,
    ProbeRequest,
    PromptFigures,
    PromptScores,
    add_sum,
    measure_prompt,
    probe_metrics,
    refusals,
)
from maxpo.types import ScoredGroup, StepBatch

MEMORY = 2**30
"""Bytes that vectors of full length may take. Beyond that, gradients are projected."""
PROJECTED = 2**16
"""Length of a projected gradient. The inner product of two is off by about 1 / sqrt(PROJECTED) of their lengths."""


def probe(
    engine: TrainEngine, request: ProbeRequest, algorithm: AlgorithmConfig, *, temperature: float, chunk: int
) -> ProbePart:
    """Measure this rank's share of the prompts. Changes nothing. Collective.

    Args:
        engine: The engine of the policy, ZeRO stage 0 to 2.
        request: Prompts with scored groups.
        algorithm: Settings of the loss.
        temperature: Sampling temperature.
        chunk: Number of tokens whose logits are in memory at a time.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    vectors = _Vectors(engine, request, algorithm, temperature, chunk)
    figures: list[PromptFigures] = []
    means: list[Tensor] = []
    for groups, k in list(zip(request.prompts, request.ks, strict=True))[rank::ranks]:
        own, mean = measure_prompt(_scores(groups, vectors), k, request)
        figures.append(own)
        means.append(mean)
    rows = len(request.names) + (len(request.prompts[0]) == 2)
    total = torch.zeros(rows, vectors.dimensions, dtype=vectors.dtype)
    for mean in means:
        total += mean
    total = total.to(engine.device)
    dist.all_reduce(total)
    add_sum(figures, means, total.cpu())
    return ProbePart(figures=tuple(figures), dimensions=vectors.dimensions, parameters=vectors.parameters)


def probe_step(
    engine: TrainEngine, batch: StepBatch, algorithm: AlgorithmConfig, *, temperature: float, chunk: int
) -> dict[str, float]:
    """Probe the first groups of a batch; return the metrics, equal on all ranks. See `probe`.

    There are none if no group has more than K valid samples.
    """
    started = time.perf_counter()
    usable = [(g, k) for g, k in zip(batch.groups, batch.k, strict=True) if sum(g.valid) > k][: algorithm.probe_groups]
    if not usable:
        return {}
    groups, ks = zip(*usable, strict=True)
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    parameters = parameters_of(algorithm, batch.mix)
    wanted = (*SIZED, algorithm.advantage, algorithm.mix_with or algorithm.advantage, *algorithm.shadow)
    refused = refusals(wanted, rewards, torch.tensor(ks), valid, parameters)
    names = tuple(name for name in dict.fromkeys(wanted) if name not in refused)
    request = ProbeRequest(prompts=tuple((g,) for g in groups), names=names, ks=ks, parameters=parameters)
    part = probe(engine, request, algorithm, temperature=temperature, chunk=chunk)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part.figures)
    metrics = probe_metrics([figures for own in parts for figures in own], names)
    return metrics | {"time/probe_s": time.perf_counter() - started}


def _scores(groups: Sequence[ScoredGroup], vectors: _Vectors) -> PromptScores:
    """Return the samples of a prompt with their gradients, one backward pass for each valid sample with loss tokens."""
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    scores = torch.zeros(*rewards.shape, vectors.dimensions, dtype=vectors.dtype)
    tokens = torch.zeros(rewards.shape, dtype=torch.int64)
    for j, group in enumerate(groups):
        for sample in samples_of(j, group.group):
            if valid[j, sample.index] and sample.loss_tokens:
                tokens[j, sample.index] = sample.loss_tokens
                scores[j, sample.index] = vectors.of(sample)
    return PromptScores(
        prompt_id=groups[0].group.prompt.prompt_id,
        scores=scores,
        rewards=rewards,
        valid=valid,
        successes=torch.tensor([group.successes for group in groups]),
        tokens=tokens,
    )


class _Vectors:
    """Gradients of the trained parameters as vectors of one length."""

    def __init__(
        self, engine: TrainEngine, request: ProbeRequest, algorithm: AlgorithmConfig, temperature: float, chunk: int
    ) -> None:
        self._engine, self._algorithm = engine, algorithm
        self._forward = {"temperature": temperature, "chunk": chunk}
        self._trained = [p for p in engine.module.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self._trained)
        self.dtype = torch.promote_types(torch.float32, self._trained[0].dtype)
        samples = len(request.prompts[0]) * len(request.prompts[0][0].rewards)
        kept = samples + len(request.prompts) * (len(request.names) + 1)
        exact = kept * self.parameters * self.dtype.itemsize <= MEMORY
        self.dimensions = self.parameters if exact else min(PROJECTED, self.parameters)
        self._signs: Tensor | None = None
        if self.dimensions < self.parameters:
            # Every coordinate gets a random sign, and coordinates that are `dimensions` apart are added up.
            generator = torch.Generator(engine.device).manual_seed(request.seed)
            size = (-(-self.parameters // self.dimensions), self.dimensions)
            bits = torch.randint(0, 2, size, generator=generator, device=engine.device, dtype=torch.int8)
            self._signs = 2 * bits - 1

    def of(self, sample: Sample) -> Float[Tensor, " D"]:
        """Return the gradient of the log-probability of a sample, as a vector in memory of the host."""
        row = pack([replace(sample, group=0, index=0)], torch.zeros(1, 1), lambda s: 0.0).to(self._engine.device)
        logprobs, _ = self._engine.module(row, **self._forward)
        # With `sequence_mean` the loss divides the gradient of a sequence by its length, with the others by a constant.
        share = 1 / sample.loss_tokens if self._algorithm.aggregation == "sequence_mean" else 1.0
        gradients = torch.autograd.grad(logprobs.sum() * share, self._trained, allow_unused=True)
        flat = torch.zeros(
            self.parameters if self._signs is None else self._signs.numel(),
            dtype=self.dtype,
            device=self._engine.device,
        )
        start = 0
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            if gradient is not None:
                flat[start : start + parameter.numel()] = gradient.flatten()
            start += parameter.numel()
        if self._signs is not None:
            flat = (flat.view(self._signs.shape) * self._signs).sum(0)
        return flat.cpu()

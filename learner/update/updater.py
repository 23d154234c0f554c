"""One training step of a rank: advantages, packed microbatches, loss, optimizer steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from learner.deepspeed_engine import TrainEngine
from learner.update.loss import SUMS, lag_sums, microbatch_loss
from learner.update.schedule import learning_rate
from maxpo.batches.packing import TrainBatch, own_part, pack, plan_microbatches
from maxpo.batches.samples import Sample, reward_matrix, valid_samples
from maxpo.config import AlgorithmConfig, LearnerConfig
from maxpo.estimators.mixing import mixed
from maxpo.losses.aggregation import sequence_weight
from maxpo.types import StepBatch


class Updater:
    """Training steps of one rank. Every method is collective over the ranks."""

    def __init__(
        self,
        engine: TrainEngine,
        reference: Callable[..., tuple[Tensor, Tensor]] | None,
        learner: LearnerConfig,
        algorithm: AlgorithmConfig,
        *,
        rank: int,
        temperature: float,
        aggregation_constant: float,
        total_steps: int,
        max_staleness: int = 0,
    ) -> None:
        """Keep the parts that all updates share.

        Args:
            engine: Policy and optimizer.
            reference: Forward function of the frozen policy for the KL; None without a KL term.
            learner: Settings of the learner.
            algorithm: Settings of the loss.
            rank: Number of this rank.
            temperature: Sampling temperature of the rollouts.
            aggregation_constant: Divisor of the sum over tokens with `aggregation: constant`.
            total_steps: Number of training steps of the run, for the learning rate.
            max_staleness: Age of the oldest tokens, in updates. Above 0 the mismatch is summed by age too.
        """
        self._engine = engine
        self._reference = reference
        self._learner = learner
        self._algorithm = algorithm
        self._rank = rank
        self._constant = aggregation_constant
        self._forward_args = {"temperature": temperature, "chunk": learner.logprob_chunk}
        self._total = total_steps * algorithm.minibatches
        self._lags = max_staleness + 1 if max_staleness else 0
        self._sums = (*SUMS, *lag_sums(self._lags))
        self.optimizer_steps = 0

    def update(self, batch: StepBatch) -> dict[str, float]:
        """Take `algorithm.minibatches` optimizer steps; return the metrics, which are equal on all ranks.

        Raises:
            FloatingPointError: Loss or gradient is not finite, and `learner.on_nonfinite` is stop.
            ValueError: No sample is valid.
        """
        started = time.perf_counter()
        if batch.entropy_coef is not None:
            self._algorithm = replace(self._algorithm, entropy_coef=batch.entropy_coef)
        rewards, valid = reward_matrix(batch.groups, self._engine.device)
        advantages = self._advantages(batch, rewards, valid)
        present = valid_samples(batch.groups)
        if not present:
            raise ValueError(f"step {batch.step} has no valid sample to learn from")
        samples = self._select(present, batch)
        parts = _split(samples, len(batch.groups), self._algorithm.minibatches)
        packed = [self._microbatches(part, advantages, batch) for part in parts]
        metrics = {
            "advantage/abs_mean": float(advantages[valid].abs().mean()),
            "advantage/group_sum_max": float(advantages.sum(1).abs().max()),
            "train/sequences": float(len(samples)),
            "train/zero_advantage": 1 - len(samples) / len(present),
            "train/microbatches": float(sum(map(len, packed))),
            "time/pack_s": time.perf_counter() - started,
        }
        metrics |= self._optimize(packed)
        return metrics | {"time/update_s": time.perf_counter() - started}

    def _select(self, samples: list[Sample], batch: StepBatch) -> list[Sample]:
        """Return the samples to compute: without those of zero advantage, if they add nothing to the gradient.

        The batch says which samples have signal, so every rank packs the same ones. An advantage computed here could
        be rounded to zero on one device and not on another.
        """
        a = self._algorithm
        if not a.drop_zero_signal or a.kl_coef or a.entropy_coef or a.entropy_target is not None:
            return samples
        return [s for s in samples if batch.signal[s.group][s.index]]

    def _optimize(self, packed: Sequence[Sequence[TrainBatch]]) -> dict[str, float]:
        """Take one optimizer step for each minibatch of packed rows; return the metrics of the steps.

        Raises:
            FloatingPointError: As in `update`.
        """
        totals = torch.zeros(len(self._sums), dtype=torch.float64)
        norms: list[float] = []
        overflows = 0
        scale = self._engine.loss_scale
        for microbatches, old_logprobs in zip(packed, self._old_logprobs(packed), strict=True):
            sums = self._accumulate(microbatches, old_logprobs)
            norm = self._engine.step(learning_rate(self._learner, self.optimizer_steps, self._total))
            if norm is not None:
                totals += sums
                norms.append(norm)
                self.optimizer_steps += 1
            elif scale is not None and math.isfinite(sums[SUMS.index("loss")]) and scale.lower():
                overflows += 1  # of the scaled gradient in float16, which the next step repeats with a smaller scale
            elif self._learner.on_nonfinite == "stop":
                quantity = "gradient" if math.isfinite(sums[SUMS.index("loss")]) else "loss"
                raise FloatingPointError(f"the {quantity} is not finite; no optimizer step was taken")
        metrics = {
            "train/tokens": float(totals[SUMS.index("tokens")]),
            "train/optimizer_steps": float(self.optimizer_steps),
            "train/refused_steps": float(len(packed) - len(norms) - overflows),
        }
        if scale is not None:
            metrics |= {"train/loss_scale": scale.value, "train/overflow_steps": float(overflows)}
        if norms:
            metrics |= self._summary(totals, len(norms)) | {
                "train/grad_norm": sum(norms) / len(norms),
                "train/lr": learning_rate(self._learner, self.optimizer_steps - 1, self._total),
            }
        return metrics

    def _advantages(self, batch: StepBatch, rewards: Tensor, valid: Tensor) -> Tensor:
        """Return the [G, N] advantages on the device of this rank.

        Every rank computes the whole matrix, so the advantages do not depend on how sequences are sharded.
        """
        return mixed(self._algorithm, batch.mix, rewards, torch.tensor(batch.k, device=rewards.device), valid)

    def _microbatches(self, samples: list[Sample], advantages: Tensor, batch: StepBatch) -> list[TrainBatch]:
        """Return this rank's packed rows of one optimizer step."""
        weight = partial(
            sequence_weight,
            self._algorithm.aggregation,
            total_tokens=batch.sampled_tokens / self._algorithm.minibatches,
            total_sequences=batch.sampled_sequences / self._algorithm.minibatches,
            constant=self._constant,
        )
        shared = self._learner.sequence_parallel
        packed = self._engine.module.layout == "packed"
        plan = plan_microbatches(
            [len(s.token_ids) for s in samples],
            self._learner.token_budget,
            self._engine.world_size // shared,
            padded=not packed,
            prompts=[(s.group, s.prompt_tokens) for s in samples] if packed and shared == 1 else None,
        )
        mine, part = divmod(self._rank, shared)
        version = batch.version if self._lags else None
        rows = [
            pack(
                [samples[i] for i in row], advantages, lambda s: weight(s.loss_tokens), multiple=shared, version=version
            )
            for row in plan[mine]
        ]
        return [own_part(row, part, shared).to(self._engine.device) for row in rows]

    def _old_logprobs(self, packed: Sequence[Sequence[TrainBatch]]) -> list[Iterable[Tensor | None]]:
        """Return the log-probabilities at the start of the step, or None for each row if one optimizer step follows."""
        if len(packed) == 1:
            return [[None] * len(packed[0])]
        with torch.no_grad():
            return [[self._engine.forward(row, **self._forward_args)[0] for row in rows] for rows in packed]

    def _accumulate(self, microbatches: Sequence[TrainBatch], old_logprobs: Iterable[Tensor | None]) -> Tensor:
        """Run forward and backward over this rank's rows; return the sums over all ranks, in the order of `SUMS`.

        If the loss is not finite, the gradient is made non-finite too.
        """
        totals = torch.zeros(len(self._sums), dtype=torch.float64, device=self._engine.device)
        for i, (row, old) in enumerate(zip(microbatches, old_logprobs, strict=True)):
            ref = None
            # The reference runs first. It may share modules with the policy, and no other forward pass may come between
            # the forward and the backward pass of the policy.
            if self._reference is not None:
                with torch.no_grad():
                    ref = self._reference(row, **self._forward_args)[0]
            logprobs, entropy = self._engine.forward(
                row, entropy_grad=bool(self._algorithm.entropy_coef), **self._forward_args
            )
            loss, sums = microbatch_loss(
                logprobs, entropy, row, self._algorithm, old_logprobs=old, ref_logprobs=ref, lags=self._lags
            )
            # The engine refuses a step by the gradient alone, and an infinite loss can have a finite gradient.
            loss = loss + logprobs.sum() * torch.where(loss.isfinite(), 0.0, math.nan)
            self._engine.backward(loss, last=i == len(microbatches) - 1)
            totals += torch.stack([sums.get(name, totals.new_zeros(())).double() for name in self._sums])
        dist.all_reduce(totals)
        return totals.cpu()

    def _summary(self, totals: Tensor, steps: int) -> dict[str, float]:
        """Return the finite metrics of the sums over `steps` optimizer steps."""
        sums = dict(zip(self._sums, totals.tolist(), strict=True))
        tokens = max(sums["tokens"], 1.0)
        mean = {name: total / tokens for name, total in sums.items()}
        metrics = {
            "train/loss": sums["loss"] / steps,
            "policy/entropy": mean["entropy"],
            "policy/approx_kl": mean["approx_kl"],
            "policy/clipped_low": mean["clipped_low"],
            "policy/clipped_high": mean["clipped_high"],
            "mismatch/kl": mean["mismatch_kl"],
            "mismatch/logprob_abs": mean["mismatch_abs"],
        }
        if self._algorithm.tis_cap is not None:
            metrics |= {"mismatch/tis_mean": mean["tis_weight"], "mismatch/tis_capped": mean["tis_capped"]}
        if self._algorithm.token_mask or self._algorithm.sequence_mask:
            metrics["mismatch/masked"] = mean["masked"]
        if self._reference is not None:
            metrics["policy/reference_kl"] = mean["reference_kl"]
        for lag in range(self._lags):
            if of_lag := sums[f"tokens_lag_{lag}"]:
                metrics[f"mismatch/kl_lag_{lag}"] = sums[f"mismatch_kl_lag_{lag}"] / of_lag
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _split(samples: list[Sample], groups: int, parts: int) -> list[list[Sample]]:
    """Split the samples by group into `parts` of nearly equal numbers of groups, in order."""
    return [[s for s in samples if s.group * parts // groups == part] for part in range(parts)]

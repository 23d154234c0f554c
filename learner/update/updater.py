"""One learner update: advantages, packed microbatches, loss, optimizer steps. The same code on every rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from learner.deepspeed_engine import TrainEngine
from learner.update.loss import SUMS, microbatch_loss
from learner.update.schedule import learning_rate
from maxpo.batches.packing import TrainBatch, own_part, pack, plan_microbatches
from maxpo.batches.samples import Sample, reward_matrix, valid_samples
from maxpo.config import AlgorithmConfig, LearnerConfig
from maxpo.estimators.mixing import mixed
from maxpo.losses.aggregation import sequence_weight
from maxpo.types import StepBatch


class Updater:
    """Turns step batches into optimizer steps."""

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
    ) -> None:
        """Keep what all updates share. `reference` answers as the frozen policy of the KL, None where it is off."""
        self._engine = engine
        self._reference = reference
        self._learner = learner
        self._algorithm = algorithm
        self._rank = rank
        self._constant = aggregation_constant
        self._forward_args = {"temperature": temperature, "chunk": learner.logprob_chunk}
        self._total = total_steps * algorithm.minibatches
        self.optimizer_steps = 0

    def update(self, batch: StepBatch) -> dict[str, float]:
        """Advantages, then `algorithm.minibatches` optimizer steps; metrics of the whole step, equal on all ranks.

        Raises:
            FloatingPointError: loss or gradient is not finite, and `learner.on_nonfinite` is stop.
            ValueError: there is nothing to learn from.
        """
        started = time.perf_counter()
        device = self._engine.device
        samples = valid_samples(batch.groups)
        if not samples:
            raise ValueError(f"step {batch.step} has no valid sample to learn from")
        rewards, valid = reward_matrix(batch.groups, device)
        advantages = self._advantages(batch, rewards, valid)
        present = len(samples)
        if self._skips_zero_advantages():
            samples = [s for s in samples if batch.signal[s.group][s.index]]
        packed = [
            self._microbatches(part, advantages, batch)
            for part in _split(samples, len(batch.groups), self._algorithm.minibatches)
        ]
        metrics = {
            "advantage/abs_mean": float(advantages[valid].abs().mean()),
            "advantage/group_sum_max": float(advantages.sum(1).abs().max()),
            "train/sequences": float(len(samples)),
            "train/zero_advantage": 1 - len(samples) / present,
            "time/pack_s": time.perf_counter() - started,
        }
        old = self._old_logprobs(packed)
        totals = torch.zeros(len(SUMS), dtype=torch.float64)
        norms: list[float] = []
        for microbatches, old_logprobs in zip(packed, old, strict=True):
            sums = self._accumulate(microbatches, old_logprobs)
            norm = self._engine.step(learning_rate(self._learner, self.optimizer_steps, self._total))
            if norm is not None:
                totals += sums
                norms.append(norm)
                self.optimizer_steps += 1
            elif self._learner.on_nonfinite == "stop":
                what = "gradient" if math.isfinite(sums[SUMS.index("loss")]) else "loss"
                raise FloatingPointError(f"the {what} is not finite; no optimizer step was taken")
        if norms:
            metrics |= self._summary(totals, len(norms)) | {
                "train/grad_norm": sum(norms) / len(norms),
                "train/lr": learning_rate(self._learner, self.optimizer_steps - 1, self._total),
            }
        return metrics | {
            "train/tokens": float(totals[SUMS.index("tokens")]),
            "train/optimizer_steps": float(self.optimizer_steps),
            "train/refused_steps": float(len(packed) - len(norms)),
            "train/microbatches": float(sum(len(m) for m in packed)),
            "time/update_s": time.perf_counter() - started,
        }

    def _advantages(self, batch: StepBatch, rewards: Tensor, valid: Tensor) -> Tensor:
        """[G, N] on the device; the same on every rank."""
        return mixed(
            self._algorithm.advantage,
            rewards,
            torch.tensor(batch.k, device=rewards.device),
            valid,
            objective=self._algorithm.objective,
            mix_with=self._algorithm.mix_with,
            mix_weight=batch.mix_weight,
        )

    def _skips_zero_advantages(self) -> bool:
        """Whether a sequence of zero advantage adds nothing to the gradient and may be left out."""
        a = self._algorithm
        return a.drop_zero_signal and a.kl_coef == 0 and a.entropy_coef == 0

    def _microbatches(self, samples: list[Sample], advantages: Tensor, batch: StepBatch) -> list[TrainBatch]:
        """This rank's packed rows of one optimizer step."""
        weight = partial(
            sequence_weight,
            self._algorithm.aggregation,
            total_tokens=batch.sampled_tokens / self._algorithm.minibatches,
            total_sequences=batch.sampled_sequences / self._algorithm.minibatches,
            constant=self._constant,
        )
        shared = self._learner.sequence_parallel
        plan = plan_microbatches(
            [len(s.token_ids) for s in samples], self._learner.token_budget, self._engine.world_size // shared
        )
        mine, part = divmod(self._rank, shared)
        rows = [
            pack([samples[i] for i in row], advantages, lambda s: weight(s.loss_tokens), multiple=shared)
            for row in plan[mine]
        ]
        return [own_part(row, part, shared).to(self._engine.device) for row in rows]

    def _old_logprobs(self, packed: Sequence[Sequence[TrainBatch]]) -> list[Iterable[Tensor | None]]:
        """Log-probabilities at the start of the step; only needed where more than one optimizer step follows."""
        if len(packed) == 1:
            return [[None] * len(packed[0])]
        with torch.no_grad():
            return [[self._engine.forward(row, **self._forward_args)[0] for row in rows] for rows in packed]

    def _accumulate(self, microbatches: Sequence[TrainBatch], old_logprobs: Iterable[Tensor | None]) -> Tensor:
        """Forward and backward over this rank's rows; the sums over all ranks, in the order of `SUMS`.

        Where the loss is not finite, the gradient is not either.
        """
        totals = torch.zeros(len(SUMS), dtype=torch.float64, device=self._engine.device)
        for i, (row, old) in enumerate(zip(microbatches, old_logprobs, strict=True)):
            ref = None
            if self._reference is not None:  # first: it may be the same modules, and nothing may come before backward
                with torch.no_grad():
                    ref = self._reference(row, **self._forward_args)[0]
            logprobs, entropy = self._engine.forward(
                row, entropy_grad=bool(self._algorithm.entropy_coef), **self._forward_args
            )
            loss, sums = microbatch_loss(logprobs, entropy, row, self._algorithm, old_logprobs=old, ref_logprobs=ref)
            # The gradient alone decides whether a step is taken, and that of an infinite loss may be finite.
            loss = loss + logprobs.sum() * torch.where(loss.isfinite(), 0.0, math.nan)
            self._engine.backward(loss, last=i == len(microbatches) - 1)
            totals += torch.stack([sums.get(name, totals.new_zeros(())).double() for name in SUMS])
        dist.all_reduce(totals)
        return totals.cpu()

    def _summary(self, totals: Tensor, steps: int) -> dict[str, float]:
        """Sums over this many optimizer steps -> metrics, those that are finite."""
        sums = dict(zip(SUMS, totals.tolist(), strict=True))
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
        if self._reference is not None:
            metrics["policy/reference_kl"] = mean["reference_kl"]
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _split(samples: list[Sample], groups: int, parts: int) -> list[list[Sample]]:
    """Whole groups in order, as evenly as possible over `parts`."""
    return [[s for s in samples if s.group * parts // groups == part] for part in range(parts)]

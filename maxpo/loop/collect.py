"""The groups of one training step: taken from the buffer, selected and, up to a limit, replaced."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maxpo.batches.samples import training_rewards
from maxpo.config import AlgorithmConfig, Config
from maxpo.data.order import PromptStream
from maxpo.errors import RunError
from maxpo.estimators.adaptive_lam import AdaptiveLam
from maxpo.estimators.k_schedule import PassRates, mix_weight
from maxpo.estimators.names import fixed_lam
from maxpo.files import step_name
from maxpo.loop.buffer import GroupBuffer
from maxpo.loop.observer import Observer
from maxpo.loop.selection import AssessedGroup, assess
from maxpo.loop.state import LoopState
from maxpo.loop.step_metrics import sampling_metrics, staleness_metrics, usable_metrics, valid_successes
from maxpo.protocols import Rollouts
from maxpo.rewards.checks import check_some_scored
from maxpo.tracking.run_log import RunLog
from maxpo.types import Mix, StepBatch, Ticket


@dataclass
class Collector:
    """Source of training groups. Its prompt stream, buffer and pass rates are part of a checkpoint."""

    config: Config
    stream: PromptStream
    rollouts: Rollouts
    log: RunLog
    observer: Observer
    rates: PassRates = field(init=False, default_factory=PassRates)
    """Observed pass rate of each prompt, for the adaptive K."""
    lam: AdaptiveLam = field(init=False, default_factory=AdaptiveLam)
    """Weight of L2O that earlier probes found best."""

    def __post_init__(self) -> None:
        self.buffer = GroupBuffer(self.config, self.stream, self.rates, self.rollouts)
        self._entropy_coef = self.config.algorithm.entropy_coef
        self._beside = 0.0

    def sampled_beside(self, seconds: float) -> None:
        """Take note of the seconds of sampling beside the last update."""
        self._beside = seconds

    def collect(self, step: int, version: int) -> tuple[StepBatch, dict[str, float]]:
        """Return the batch of a step and its metrics.

        Dropped groups are replaced by the next ones, in at most `algorithm.refill_rounds` further rounds.

        Args:
            step: Number of the step, from 1.
            version: Version of the weights that the engines have.

        Raises:
            RunError: The estimator does not accept these rewards, or the verifier failed on every answer.
        """
        algorithm, steps = self.config.algorithm, self.config.run.steps
        mix = Mix(
            weight=mix_weight(algorithm.mix_weight, step, steps) if algorithm.mix_with else 0.0,
            lam=self.lam() if algorithm.lam == "adaptive" else fixed_lam(algorithm.lam),
        )
        timing = dict.fromkeys(("time/generate_s", "time/score_s", "buffer/waited_for_oldest"), 0.0)
        timing |= {"buffer/pending": float(len(self.buffer.pending))}
        timing |= {"buffer/ready": float(sum(ticket.scored is not None for ticket in self.buffer.pending))}
        tickets: list[Ticket] = []
        groups: list[AssessedGroup] = []
        kept: list[AssessedGroup] = []
        refills = -1
        while len(kept) < algorithm.prompts_per_step and refills < algorithm.refill_rounds:
            refills += 1
            taken = self._take(step, refills, algorithm.prompts_per_step - len(kept), timing)
            assessed = self._assess(taken, step, mix)
            tickets, groups = tickets + taken, groups + assessed
            kept += [g for g in assessed if (g.has_signal if algorithm.drop_zero_signal else g.enough)]
        self.rates.observe(valid_successes([g.scored for g in groups]))
        self.log.log_rollouts(step_name(step), [g.scored for g in groups], [ticket.number for ticket in tickets])
        sampling_s = timing["time/generate_s"] + self._beside
        metrics = timing | sampling_metrics([g.scored for g in groups], algorithm.k, sampling_s)
        metrics |= staleness_metrics(tickets, step, version, self.config.pipeline.max_staleness)
        metrics |= selection_metrics(algorithm, mix, groups, kept) | {"groups/refill_rounds": float(refills)}
        metrics |= {"data/epoch": self.stream.epochs(self.buffer.taken)}
        if algorithm.mix_with:
            metrics["algorithm/mix_weight"] = mix.weight
        if "interpolated" in (algorithm.advantage, algorithm.mix_with) and mix.lam is not None:
            metrics["algorithm/lam"] = mix.lam
        if algorithm.truncated != "train":
            treated = sum(g.scored.outcomes.count("truncated") for g in groups)
            metrics[f"completions/truncated_{algorithm.truncated}"] = float(treated)
        batch = replace(step_batch(step, groups, kept, mix), version=version)
        if algorithm.entropy_target is not None:
            metrics["algorithm/entropy_coef"] = self._entropy_coef
            batch = replace(batch, entropy_coef=self._entropy_coef)
        return batch, metrics

    def learned(self, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of an update: what a probe found, and the entropy for the weight of the bonus."""
        if "probe/apart" in metrics:
            self.lam.observe(metrics["probe/along"], metrics["probe/apart"])
        target, entropy = self.config.algorithm.entropy_target, metrics.get("policy/entropy")
        if target is not None and entropy is not None:
            change = self.config.algorithm.entropy_step * (1 if entropy < target else -1)
            self._entropy_coef = min(1.0, max(0.0, self._entropy_coef + change))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as plain JSON values."""
        return {
            "buffer": list(self.buffer.state_dict()),
            "pass_rates": self.rates.state_dict(),
            "lam": self.lam.state_dict(),
            "entropy_coef": self._entropy_coef,
        }

    def load_state_dict(self, state: LoopState) -> None:
        """Restore what `state_dict` returned. Checkpoints of earlier versions lack some of it."""
        self.rates.load_state_dict(state["pass_rates"])
        self.buffer.load_state_dict(state.get("buffer", []))
        if "lam" in state:
            self.lam.load_state_dict(state["lam"])
        if self.config.algorithm.entropy_target is not None:
            self._entropy_coef = state.get("entropy_coef", self._entropy_coef)

    def _take(self, step: int, refills: int, missing: int, timing: dict[str, float]) -> list[Ticket]:
        """Admit prompts, and take the next groups. Adds the seconds of waiting to `timing`."""
        progress = _Progress(self.observer, missing)
        started = time.monotonic()
        self.buffer.admit(step, refills, missing)
        taken = self.buffer.take(step, missing, progress)
        ended = time.monotonic()
        sampled = min(ended, max(started, *(ticket.sampled_at for ticket in taken)))
        timing["time/generate_s"] += sampled - started
        timing["time/score_s"] += ended - sampled
        timing["buffer/waited_for_oldest"] += progress.waited_for_oldest
        return taken

    def _assess(self, tickets: Sequence[Ticket], step: int, mix: Mix) -> list[AssessedGroup]:
        """Return the groups with their advantages."""
        algorithm = self.config.algorithm
        scored = [ticket.scored for ticket in tickets if ticket.scored]
        check_some_scored(scored)
        try:
            treated = training_rewards(scored, algorithm, self.config.rollout.max_new_tokens)
            return assess(treated, algorithm, [t.k for t in tickets], mix)
        except ValueError as error:
            raise RunError(f"step {step}: {error}") from error


class _Progress:
    """Reports to the observer how many groups of a round are sampled, and when only their scores are missing."""

    def __init__(self, observer: Observer, total: int) -> None:
        self._observer, self._total = observer, total
        self._reported, self._scoring = 0, False
        self.waited_for_oldest = 0
        """Most groups that were waited for although others were ready in their place."""
        observer.stage("generate", total)

    def __call__(self, must: Sequence[Ticket], others: Sequence[Ticket]) -> None:
        """Report what has changed. See `GroupBuffer.take` for the arguments."""
        sampled = sum(t.group is not None for t in must)
        sampled += min(self._total - len(must), sum(t.group is not None for t in others))
        for _ in range(sampled - self._reported):
            self._observer.advance()
        self._reported = max(sampled, self._reported)
        if sampled == self._total and not self._scoring:
            self._scoring = True
            self._observer.stage("score")
        late = sum(ticket.scored is None for ticket in must)
        if late and sum(ticket.scored is not None for ticket in (*must, *others)) >= self._total:
            self.waited_for_oldest = max(late, self.waited_for_oldest)


def selection_metrics(
    algorithm: AlgorithmConfig, mix: Mix, groups: Sequence[AssessedGroup], kept: Sequence[AssessedGroup]
) -> dict[str, float]:
    """Return the metrics of K, of the advantages, and of which groups were dropped."""
    usable = [g for g in groups if g.enough]
    return usable_metrics(usable, algorithm, mix) | {
        "algorithm/k": sum(g.k for g in groups) / len(groups),
        "groups/too_few_valid": float(len(groups) - len(usable)),
        "groups/kept": float(len(kept)),
        "groups/zero_signal": float(len(usable) - len(kept)),
    }


def step_batch(step: int, groups: Sequence[AssessedGroup], kept: Sequence[AssessedGroup], mix: Mix) -> StepBatch:
    """Return the learner's batch: the kept groups, and denominators that count every usable group."""
    valid = [
        completion
        for g in groups
        if g.enough
        for completion, ok in zip(g.scored.group.completions, g.scored.valid, strict=True)
        if ok
    ]
    return StepBatch(
        groups=tuple(g.scored for g in kept),
        signal=tuple(g.signal for g in kept),
        sampled_sequences=len(valid),
        sampled_tokens=sum(completion.loss_tokens for completion in valid),
        step=step,
        k=tuple(g.k for g in kept),
        mix=mix,
    )

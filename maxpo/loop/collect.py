"""The groups of one training step: sampled, scored, selected and, up to a limit, replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from maxpo.batches.samples import treat_truncated
from maxpo.config import AlgorithmConfig, Config
from maxpo.data.order import PromptStream
from maxpo.errors import RunError
from maxpo.estimators.k_schedule import PassRates, adapted_k, mix_weight, scheduled_k
from maxpo.files import step_name
from maxpo.loop.observer import Observer
from maxpo.loop.selection import AssessedGroup, assess
from maxpo.loop.step_metrics import sampling_metrics, usable_metrics, valid_successes
from maxpo.protocols import Rollouts
from maxpo.timing import timed
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt, StepBatch


@dataclass
class Collector:
    """Source of training groups. Its prompt stream and pass rates are part of a checkpoint."""

    config: Config
    stream: PromptStream
    rollouts: Rollouts
    log: RunLog
    observer: Observer
    rates: PassRates = field(init=False, default_factory=PassRates)
    """Observed pass rate of each prompt, for the adaptive K."""

    def collect(self, step: int, version: int) -> tuple[StepBatch, dict[str, float]]:
        """Return the batch of a step and its metrics.

        Dropped groups are replaced by groups of new prompts, in at most `algorithm.refill_rounds` further rounds.

        Args:
            step: Number of the step, from 1.
            version: Version of the weights that the engines have.

        Raises:
            RunError: The estimator does not accept these rewards.
        """
        algorithm, steps = self.config.algorithm, self.config.run.steps
        weight = mix_weight(algorithm.mix_weight, step, steps) if algorithm.mix_with else 0.0
        timing = {"time/generate_s": 0.0, "time/score_s": 0.0}
        groups: list[AssessedGroup] = []
        kept: list[AssessedGroup] = []
        refills = -1
        while len(kept) < algorithm.prompts_per_step and refills < algorithm.refill_rounds:
            refills += 1
            missing = algorithm.prompts_per_step - len(kept)
            sampled = self._sample(missing, step, f"step{step}.{refills}", weight, timing)
            groups += sampled
            kept += [g for g in sampled if (g.has_signal if algorithm.drop_zero_signal else g.enough)]
        self.rates.observe(valid_successes([g.scored for g in groups]))
        self.log.log_rollouts(step_name(step), [g.scored for g in groups])
        metrics = timing | sampling_metrics([g.scored for g in groups], algorithm.k, timing["time/generate_s"], version)
        metrics |= selection_metrics(algorithm, groups, kept) | {"groups/refill_rounds": float(refills)}
        metrics |= {"data/epoch": self.stream.epoch}
        if algorithm.mix_with:
            metrics["algorithm/mix_weight"] = weight
        if algorithm.truncated != "train":
            treated = sum(g.scored.outcomes.count("truncated") for g in groups)
            metrics[f"completions/truncated_{algorithm.truncated}"] = float(treated)
        return step_batch(step, groups, kept, weight), metrics

    def _sample(self, count: int, step: int, draw: str, weight: float, timing: dict[str, float]) -> list[AssessedGroup]:
        """Sample and score one group for each of the next `count` prompts."""
        algorithm = self.config.algorithm
        prompts = self.stream.next(count)
        ks = group_ks(algorithm, self.rates, prompts, step, self.config.run.steps)
        self.observer.stage("generate", len(prompts))
        with timed(timing, "time/generate_s"):
            groups = self.rollouts.generate(prompts, algorithm.group_size, draw, lambda group: self.observer.advance())
        self.observer.stage("score")
        with timed(timing, "time/score_s"):
            scored = treat_truncated(self.rollouts.score(groups), algorithm.truncated)
        try:
            return assess(scored, algorithm, ks, weight)
        except ValueError as error:
            raise RunError(f"step {step}: {error}") from error


def selection_metrics(
    algorithm: AlgorithmConfig, groups: Sequence[AssessedGroup], kept: Sequence[AssessedGroup]
) -> dict[str, float]:
    """Return the metrics of K, of the advantages, and of which groups were dropped."""
    usable = [g for g in groups if g.enough]
    return usable_metrics(usable, algorithm) | {
        "algorithm/k": sum(g.k for g in groups) / len(groups),
        "groups/too_few_valid": float(len(groups) - len(usable)),
        "groups/kept": float(len(kept)),
        "groups/zero_signal": float(len(usable) - len(kept)),
    }


def step_batch(
    step: int, groups: Sequence[AssessedGroup], kept: Sequence[AssessedGroup], mix_weight: float
) -> StepBatch:
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
        mix_weight=mix_weight,
    )


def group_ks(
    algorithm: AlgorithmConfig, rates: PassRates, prompts: Sequence[Prompt], step: int, total_steps: int
) -> list[int]:
    """Return the K of each prompt. It is fixed before the prompt's group is sampled."""
    if algorithm.k_schedule == "adaptive":
        return [adapted_k(rates(prompt.prompt_id), *algorithm.k_values) for prompt in prompts]
    return [scheduled_k(algorithm, step, total_steps)] * len(prompts)

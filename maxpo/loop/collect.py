"""The groups of one step."""

from __future__ import annotations

from collections.abc import Sequence

from maxpo.config import AlgorithmConfig, Config
from maxpo.data.order import PromptStream
from maxpo.errors import RunError
from maxpo.estimators.k_schedule import PassRates, adapted_k, mix_weight, scheduled_k
from maxpo.files import step_name
from maxpo.loop.observer import Observer
from maxpo.loop.selection import Judged, judge
from maxpo.loop.step_metrics import sampling_metrics, usable_metrics, valid_rewards
from maxpo.protocols import Rollouts
from maxpo.timing import timed
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt, StepBatch


def sample(
    config: Config,
    stream: PromptStream,
    rates: PassRates,
    rollouts: Rollouts,
    log: RunLog,
    observer: Observer,
    step: int,
) -> tuple[StepBatch, dict[str, float]]:
    """The groups of one step: sampled, scored, those without signal dropped and, up to a limit, replaced."""
    algorithm = config.algorithm
    kept: list[Judged] = []
    everything: list[Judged] = []
    timing = {"time/generate_s": 0.0, "time/score_s": 0.0}
    weight = mix_weight(algorithm.mix_weight, step, config.run.steps) if algorithm.mix_with else 0.0
    rounds = 0
    while True:
        prompts = stream.next(algorithm.prompts_per_step - len(kept))
        ks = group_ks(algorithm, rates, prompts, step, config.run.steps)
        observer.stage("generate", len(prompts))
        with timed(timing, "time/generate_s"):
            groups = rollouts.generate(
                prompts, algorithm.group_size, f"step{step}.{rounds}", lambda group: observer.advance()
            )
        observer.stage("score")
        with timed(timing, "time/score_s"):
            scored = rollouts.score(groups)
        try:
            judged = judge(scored, algorithm, ks, weight)
        except ValueError as error:
            raise RunError(f"step {step}: {error}") from error
        everything += judged
        kept += [j for j in judged if (j.signal if algorithm.drop_zero_signal else j.enough)]
        if len(kept) == algorithm.prompts_per_step or rounds == algorithm.refill_rounds:
            break
        rounds += 1
    rates.observe(valid_rewards([j.scored for j in everything]))
    log.log_rollouts(step_name(step), [j.scored for j in everything])
    usable = [j for j in everything if j.enough]
    metrics = timing | sampling_metrics([j.scored for j in everything], algorithm.k, timing["time/generate_s"])
    metrics |= usable_metrics(usable, algorithm)
    metrics |= {
        "algorithm/k": sum(j.k for j in everything) / len(everything),
        "groups/too_few_valid": float(len(everything) - len(usable)),
        "groups/kept": float(len(kept)),
        "groups/zero_signal": float(len(usable) - len(kept)),
        "groups/refill_rounds": float(rounds),
    }
    if algorithm.mix_with:
        metrics["algorithm/mix_weight"] = weight
    batch = StepBatch(
        groups=tuple(j.scored for j in kept),
        sampled_sequences=sum(sum(j.scored.valid) for j in usable),
        sampled_tokens=sum(
            sum(c.loss_mask)
            for j in usable
            for c, ok in zip(j.scored.group.completions, j.scored.valid, strict=True)
            if ok
        ),
        step=step,
        k=tuple(j.k for j in kept),
        mix_weight=weight,
    )
    return batch, metrics


def group_ks(
    algorithm: AlgorithmConfig, rates: PassRates, prompts: Sequence[Prompt], step: int, total_steps: int
) -> list[int]:
    """K of each prompt, before anything is sampled for it."""
    if algorithm.k_schedule == "adaptive":
        return [adapted_k(rates(prompt.prompt_id), *algorithm.k_values) for prompt in prompts]
    return [scheduled_k(algorithm, step, total_steps)] * len(prompts)

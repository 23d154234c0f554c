"""The training loop, over two Protocols: it runs the same with real engines and with the fakes of the tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from maxpo.advantages import ADVANTAGES, min_valid
from maxpo.batching import reward_matrix
from maxpo.config import AlgorithmConfig, Config
from maxpo.data import PromptStream
from maxpo.evaluate import EvalReport, report, unique_fraction
from maxpo.metrics import max_at_k
from maxpo.tracking import RunLog
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, StepBatch, StepResult, WeightManifest

OUTCOMES = ("too_long", "timeout", "error", "died", "abort")
"""Verdicts other than 'ok'; all but 'too_long' mask the sample."""


class Rollouts(Protocol):
    """Samples groups and scores them."""

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, draw: str, on_group: Callable[[Group], None] = ...
    ) -> list[Group]:
        """One whole group for each prompt, in order; `draw` names the sampling, equal draws sample equally."""
        ...

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion."""
        ...

    def receivers(self) -> list[Receiver]:
        """The engines that want weights."""
        ...

    def confirm(self, manifest: WeightManifest) -> None:
        """Raise unless every engine holds exactly these weights."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the engines for the log."""
        ...


class Learner(Protocol):
    """Turns scored groups into new weights."""

    def update(self, batch: StepBatch) -> StepResult:
        """One training step."""
        ...

    def publish(self, receivers: Sequence[Receiver]) -> WeightManifest:
        """Send the weights to the engines under the next version."""
        ...


class Observer:
    """Watches a run, for a terminal; does nothing by itself."""

    def stage(self, name: str, total: int = 0) -> None:
        """A stage of the step begins; `total` groups are expected, 0 where there is nothing to count."""

    def advance(self) -> None:
        """One more group of the stage is there."""

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """A training step is over."""

    def evaluated(self, step: int, result: EvalReport) -> None:
        """An evaluation is over."""


@dataclass(slots=True)
class RunResult:
    """What a run came to."""

    steps: int = 0
    stopped: bool = False
    evaluations: dict[int, EvalReport] = field(default_factory=dict[int, EvalReport])
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def train(
    config: Config,
    stream: PromptStream,
    held_out: Sequence[Prompt],
    rollouts: Rollouts,
    learner: Learner,
    log: RunLog,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Run `config.run.steps` steps.

    Args:
        config: a checked configuration.
        stream: training prompts.
        held_out: evaluation prompts.
        rollouts: engines and verifiers.
        learner: the trainer; nothing is published yet.
        log: the run folder.
        observer: gets told about progress.
        should_stop: asked before each step and each later evaluation; True ends the run there.
    """
    result = RunResult()
    publish(rollouts, learner)
    if config.eval.at_start:
        result.evaluations[0] = evaluate(config, held_out, rollouts, log, observer, step=0)
    for step in range(1, config.run.steps + 1):
        if should_stop():
            break
        started = time.perf_counter()
        batch, metrics = sample(config, stream, rollouts, log, observer, step)
        if batch.groups:
            observer.stage("update")
            metrics |= learner.update(batch).metrics
            observer.stage("sync")
            metrics |= publish(rollouts, learner)
            metrics["throughput/train_tokens_per_s"] = metrics["train/tokens"] / metrics["time/update_s"]
        metrics |= rollouts.metrics() | {"data/epoch": stream.epoch, "time/step_s": time.perf_counter() - started}
        log.log(step, metrics)
        observer.step_done(step, metrics)
        result.history.append(metrics)
        result.steps = step
        due = step % config.eval.every == 0 if config.eval.every else False
        if not should_stop() and (due or (step == config.run.steps and config.eval.at_end)):
            result.evaluations[step] = evaluate(config, held_out, rollouts, log, observer, step)
    result.stopped = should_stop()
    return result


def publish(rollouts: Rollouts, learner: Learner) -> dict[str, float]:
    """Send the learner's weights to every engine and have each confirm what it got."""
    manifest = learner.publish(rollouts.receivers())
    timing: dict[str, float] = {}
    with _timed(timing, "time/confirm_s"):
        rollouts.confirm(manifest)
    return dict(manifest.metrics) | timing | {"weights/version": float(manifest.version)}


def evaluate(
    config: Config, held_out: Sequence[Prompt], rollouts: Rollouts, log: RunLog, observer: Observer, step: int
) -> EvalReport:
    """Evaluate the current weights. Every evaluation of a run draws with the same seeds, so that two differ by
    their weights only."""
    timing: dict[str, float] = {}
    with _timed(timing, "time/eval_s"):
        observer.stage("evaluate", len(held_out))
        groups = rollouts.generate(held_out, config.eval.samples, "eval", lambda group: observer.advance())
        scored = rollouts.score(groups)
        result = report(scored, config.eval.k)
    log.log(step, result.metrics() | timing)
    log.log_rollouts(f"eval_{step:06d}", scored)
    observer.evaluated(step, result)
    return result


def sample(
    config: Config, stream: PromptStream, rollouts: Rollouts, log: RunLog, observer: Observer, step: int
) -> tuple[StepBatch, dict[str, float]]:
    """The groups of one step: sampled, scored, those without signal dropped and, up to a limit, replaced."""
    algorithm = config.algorithm
    kept: list[ScoredGroup] = []
    everything: list[ScoredGroup] = []
    usable: list[ScoredGroup] = []
    timing = {"time/generate_s": 0.0, "time/score_s": 0.0}
    rounds = 0
    while True:
        missing = algorithm.prompts_per_step - len(kept)
        observer.stage("generate", missing)
        with _timed(timing, "time/generate_s"):
            groups = rollouts.generate(
                stream.next(missing), algorithm.group_size, f"step{step}.{rounds}", lambda group: observer.advance()
            )
        observer.stage("score")
        with _timed(timing, "time/score_s"):
            scored = rollouts.score(groups)
        enough, signal = judge(scored, algorithm)
        everything += scored
        usable += [group for group, ok in zip(scored, enough, strict=True) if ok]
        keep = signal if algorithm.drop_zero_signal else enough
        kept += [group for group, wanted in zip(scored, keep, strict=True) if wanted]
        if len(kept) == algorithm.prompts_per_step or rounds == algorithm.refill_rounds:
            break
        rounds += 1
    log.log_rollouts(f"step_{step:06d}", everything)
    metrics = timing | sampling_metrics(everything, usable, algorithm.k, timing["time/generate_s"])
    metrics |= {
        "groups/kept": float(len(kept)),
        "groups/zero_signal": float(len(usable) - len(kept)),
        "groups/refill_rounds": float(rounds),
    }
    batch = StepBatch(
        groups=tuple(kept),
        sampled_sequences=sum(sum(group.valid) for group in usable),
        sampled_tokens=sum(
            sum(c.loss_mask) for g in usable for c, ok in zip(g.group.completions, g.valid, strict=True) if ok
        ),
        step=step,
    )
    return batch, metrics


def judge(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig) -> tuple[list[bool], list[bool]]:
    """For each group: whether it has enough valid samples, and whether any of its advantages is not zero.

    Zero means below 1e-6 of the spread of the group's rewards, which is what rounding leaves.
    """
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    enough = valid.sum(1) >= min_valid(algorithm.advantage, algorithm.k)
    advantages = ADVANTAGES[algorithm.advantage](rewards, algorithm.k, valid)
    high = rewards.masked_fill(~valid, -torch.inf).amax(1)
    low = rewards.masked_fill(~valid, torch.inf).amin(1)
    spread = high - low
    # Without spread only an estimator that is not centred can have signal, of the size of the reward itself.
    scale = torch.where(spread > 0, spread, high.abs())
    signal = enough & (advantages.abs().amax(1) > 1e-6 * scale)
    return [bool(e) for e in enough], [bool(s) for s in signal]


def sampling_metrics(
    groups: Sequence[ScoredGroup], usable: Sequence[ScoredGroup], k: int, generate_s: float
) -> dict[str, float]:
    """What the sampled groups say, before anything is dropped."""
    completions = [c for group in groups for c in group.group.completions]
    tokens = sum(len(c.token_ids) for c in completions)
    rewards, valid = reward_matrix(groups, torch.device("cpu"))
    outcomes = Counter(outcome.partition(":")[0] for group in groups for outcome in group.outcomes)
    newest = max(c.max_weight_version for c in completions)
    metrics = {
        "reward/mean": float(rewards.sum() / valid.sum().clamp(min=1)),
        "groups/sampled": float(len(groups)),
        "groups/too_few_valid": float(len(groups) - len(usable)),
        "completions/tokens_mean": tokens / len(completions),
        "completions/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "completions/unique": unique_fraction(groups),
        "completions/stale": sum(c.min_weight_version < newest for c in completions) / len(completions),
        "throughput/generate_tokens_per_s": tokens / generate_s,
    }
    at_k, has_k = max_at_k(rewards, k, valid)
    if bool(has_k.any()):
        metrics[f"reward/max@{k}"] = float(at_k[has_k].mean())
    for part in {name for group in groups for name in group.reward_parts}:
        values = [v for g in groups for v, ok in zip(g.reward_parts.get(part, ()), g.valid, strict=False) if ok]
        metrics[f"reward/{part}"] = sum(values) / max(1, len(values))
    return metrics | {f"verifier/{name}": float(outcomes[name]) for name in OUTCOMES}


@contextmanager
def _timed(timing: dict[str, float], name: str) -> Generator[None]:
    started = time.perf_counter()
    yield
    timing[name] = timing.get(name, 0.0) + time.perf_counter() - started

"""The training loop, over the Protocols `Rollouts` and `Learner`.

The same loop runs with real engines and with the fakes of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from maxpo.batches.agreement import Agreement
from maxpo.batches.samples import samples_of
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import Config
from maxpo.data.order import PromptStream
from maxpo.errors import LearnerLostError, RemoteError, RunError
from maxpo.evaluation.measure import measure
from maxpo.evaluation.report import report
from maxpo.files import step_name
from maxpo.loop.collect import Collector
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.state import TOTALS, RunResult, restore, state_of
from maxpo.protocols import Learner, Rollouts
from maxpo.timing import timed
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt, ScoredGroup, StepBatch

EVAL_SCORED = 8
"""Number of completions of an evaluation that the learner scores too."""
REFUSED_STEPS = 20
"""Number of consecutive training steps with a non-finite loss or gradient after which a run ends."""


def never() -> bool:
    """Return False: the run goes on until its last step."""
    return False


@dataclass
class Trainer:
    """One run of the algorithm: its parts, and the state that a checkpoint keeps."""

    config: Config
    """Checked settings."""
    stream: PromptStream
    """Training prompts."""
    held_out: Sequence[Prompt]
    """Evaluation prompts."""
    rollouts: Rollouts
    """Engines and verifiers."""
    learner: Learner
    """The learner, before its first publish."""
    log: RunLog
    """The run folder."""
    observer: Observer
    """Receiver of progress reports."""
    should_stop: Callable[[], bool] = never
    """Function that returns True when the run shall end after the current step."""
    checkpoints: Checkpoints | None = None
    """Store of the checkpoints. None: no checkpoint is written."""
    result: RunResult = field(init=False, default_factory=RunResult)
    """Outcome of the run so far."""

    def __post_init__(self) -> None:
        self.collector = Collector(self.config, self.stream, self.rollouts, self.log, self.observer)
        self.version = 0.0
        self.refused_in_a_row = 0

    def run(self, resume_from: Path | None = None) -> RunResult:
        """Train until `run.steps` steps are done or `should_stop` returns True.

        Args:
            resume_from: Verified checkpoint to restore. The log must end with the checkpoint's step.
        """
        self.restore(resume_from)
        self.publish()
        self.evaluate()
        while self.result.steps < self.config.run.steps and not self.should_stop():
            metrics: dict[str, float] = {}
            with timed(metrics, "time/step_s"):
                batch = self.collect(metrics)
                if batch.groups:
                    metrics |= self.learn(batch)
                    metrics |= self.publish()
                metrics |= self.rollouts.metrics()
            busy = metrics.get("time/update_s", 0.0) + metrics.get("time/sync_s", 0.0)
            metrics["pipeline/learner_idle"] = max(0.0, 1.0 - busy / metrics["time/step_s"])
            self.record(metrics)
            self.evaluate()
            self.checkpoint(metrics)
        return self.finish()

    def restore(self, checkpoint: Path | None) -> None:
        """Load a checkpoint into the learner and this object; None: start anew."""
        self.rollouts.abandon()  # what a lost learner has left behind
        if checkpoint is not None:
            state = restore(checkpoint, self.result, self.stream)
            self.collector.load_state_dict(state)
            self.learner.load(checkpoint / "learner", state["version"])

    def publish(self) -> dict[str, float]:
        """Send the current weights to every engine; return the metrics of the transfer."""
        self.observer.stage("sync")
        metrics = publish(self.rollouts, self.learner, self.observer)
        self.version = metrics["weights/version"]
        return metrics

    def collect(self, metrics: dict[str, float]) -> StepBatch:
        """Sample, score and select the groups of the next step; add their metrics to `metrics`."""
        if self.checkpoints is not None:
            metrics |= self.checkpoints.poll()
        batch, collected = self.collector.collect(self.result.steps + 1, int(self.version))
        metrics |= collected
        return batch

    def learn(self, batch: StepBatch) -> dict[str, float]:
        """Update the learner with the groups of one step; return the metrics of the update.

        Raises:
            RunError: The learner failed on these groups. They are written to the run folder.
            LearnerLostError: A learner rank died. The groups are not the cause.
        """
        self.observer.stage("update")
        self.rollouts.rest()
        try:
            metrics = self._update(batch)
        except LearnerLostError:
            raise
        except RemoteError as error:
            file = self.log.dump(step_name(batch.step, "failed_step"), batch.groups)
            raise RunError(f"{error}\nThe groups of step {batch.step} are in {file}.") from error
        self.collector.learned(metrics)
        if metrics["train/refused_steps"]:
            self.log.dump(step_name(batch.step, "nonfinite_step"), batch.groups)
        all_refused = metrics["train/refused_steps"] == self.config.algorithm.minibatches
        self.refused_in_a_row = self.refused_in_a_row + 1 if all_refused else 0
        # Tokens of older weights differ because the policy has moved on.
        checked = "mismatch/kl_lag_0" if self.config.pipeline.max_staleness else "mismatch/kl"
        self._check_mismatch(metrics, checked, f"step {batch.step}", batch.groups)
        metrics["throughput/train_tokens_per_s"] = metrics["train/tokens"] / metrics["time/update_s"]
        return metrics

    def _update(self, batch: StepBatch) -> dict[str, float]:
        """Update the learner, with sampling beside it; return the metrics."""
        started = beside = time.monotonic()

        def done() -> bool:
            nonlocal beside
            if not self.rollouts.idle():
                beside = time.monotonic()
            return update.done()

        update = self.learner.begin_update(batch, self.rollouts.wake)
        self.rollouts.serve(done, learner_busy=True)
        metrics = dict(update.result().metrics)
        if self.config.pipeline.update == "drained":
            # Still busy: engines that have no weights must not get the new ones as the current version.
            self.rollouts.serve(self.rollouts.idle, learner_busy=True)
        self.collector.sampled_beside(beside - started)
        return metrics | {"time/overlap_s": beside - started}

    def _check_mismatch(
        self, metrics: Mapping[str, float], name: str, where: str, groups: Sequence[ScoredGroup]
    ) -> None:
        """Raise if sampler and learner disagree more than `rollout.max_mismatch_kl`. The groups go to the run folder.

        Raises:
            RunError: They do.
        """
        limit, kl = self.config.rollout.max_mismatch_kl, metrics.get(name, 0.0)
        if limit is None or kl <= limit:
            return
        file = self.log.dump(f"mismatch_{where.replace(' ', '_')}", groups)
        raise RunError(
            f"{where}: {name} = {kl:.3g} nats a token, more than rollout.max_mismatch_kl = {limit:g}: the engines "
            f"sample from another distribution than the learner computes. The groups are in {file}. Suspect number "
            "formats (learner.dtype, rollout.dtype), rollout.engine_args, or a layer that the engine computes "
            "differently. Raise the limit only if you know the cause"
        )

    def record(self, metrics: dict[str, float]) -> None:
        """Write the metrics of a finished step and count the step.

        Raises:
            RunError: No optimizer step was taken in the last `REFUSED_STEPS` training steps.
        """
        step = self.result.steps + 1
        self.log.log(step, metrics)
        if self.refused_in_a_row == REFUSED_STEPS:
            raise RunError(
                f"loss or gradient was not finite in every optimizer step of the last {REFUSED_STEPS} training steps; "
                "their groups are in rollouts/nonfinite_step_*.jsonl"
            )
        self.observer.step_done(step, metrics)
        self.result.history.append(metrics)
        self.result.totals.update({name: int(metrics.get(name, 0)) for name in TOTALS})
        self.result.steps = step

    def evaluate(self) -> None:
        """Evaluate the current weights if an evaluation is due.

        A run that stops skips its last evaluation. The resumed run makes up for it.

        Raises:
            RunError: No held-out prompt has enough valid samples.
        """
        step, evaluations = self.result.steps, self.result.evaluations
        if step in evaluations or not evaluation_due(self.config, step) or (step and self.should_stop()):
            return
        timing: dict[str, float] = {}
        with timed(timing, "time/eval_s"):
            self.observer.stage("evaluate", len(self.held_out))
            scored, results = measure(
                self.config.eval, self.held_out, self.rollouts, lambda group: self.observer.advance()
            )
            try:
                figures = report(results, self.config.eval.k, greedy=self.config.eval.greedy)
            except ValueError as error:
                raise RunError(f"evaluation at step {step}: {error}") from error
        self._check_one_version(scored["eval"], step)
        timing |= self._eval_mismatch(scored["eval"], step)
        self.log.log(step, figures.metrics() | timing)
        for name, groups in scored.items():
            self.log.log_rollouts(step_name(step, name), groups)
        evaluations[step] = figures
        self.observer.evaluated(step, figures)

    def _check_one_version(self, scored: Sequence[ScoredGroup], step: int) -> None:
        """Raise unless all tokens of an evaluation were sampled by the current weights.

        Raises:
            RunError: They were not. Nothing sends weights during an evaluation, so it is a fault of the program.
        """
        versions = {version for g in scored for c in g.group.completions for version, _ in c.versions}
        if versions - {int(self.version)}:
            raise RunError(
                f"evaluation {step}: tokens of the versions {sorted(versions)} of the weights, and only "
                f"{self.version:.0f} is evaluated. This is a fault of maxpo: please report it"
            )

    def _eval_mismatch(self, scored: Sequence[ScoredGroup], step: int) -> dict[str, float]:
        """Compare the first completion of a few prompts with the learner; return the metric.

        Raises:
            RunError: They differ too much, see `_check_mismatch`.
        """
        some = scored[:EVAL_SCORED]
        firsts = [replace(g.group, completions=g.group.completions[:1]) for g in some]
        samples = [sample for number, group in enumerate(firsts) for sample in samples_of(number, group)]
        if not samples:
            return {}
        metrics = {"eval/mismatch_kl": Agreement.of(samples, self.learner.logprobs(samples)).kl}
        self._check_mismatch(metrics, "eval/mismatch_kl", f"evaluation {step}", some)
        return metrics

    def checkpoint(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint if one is due: on schedule, after the last step, and before the run stops."""
        step, every = self.result.steps, self.config.checkpoint.every
        if self.checkpoints is None or not every:
            return
        if step % every and step != self.config.run.steps and not self.should_stop():
            return
        self.observer.stage("checkpoint")
        timing: dict[str, float] = {}
        with timed(timing, "time/checkpoint_s"):
            if step in self.result.evaluations:
                metrics = metrics | self.result.evaluations[step].metrics()
            state = state_of(self.result, self.stream, self.collector.state_dict(), self.version)
            policy = self.config.checkpoint.policy
            self.checkpoints.write(step, state, metrics, lambda folder: self.learner.save(folder, policy=policy))
        self.log.log(step, timing)

    def finish(self) -> RunResult:
        """Wait for the last checkpoint; return the outcome of the run."""
        if self.checkpoints is not None:
            if written := self.checkpoints.wait():
                self.log.log(self.result.steps, written)
            self.result.saved_step = max(self.result.saved_step, self.checkpoints.saved_step)
        self.result.stopped = self.should_stop()
        return self.result


def evaluation_due(config: Config, step: int) -> bool:
    """Return True if the settings ask for an evaluation after `step` steps."""
    if step == 0:
        return config.eval.at_start
    scheduled = config.eval.every > 0 and step % config.eval.every == 0
    return scheduled or (step == config.run.steps and config.eval.at_end)

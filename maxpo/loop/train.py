"""The training loop, over two Protocols: it runs the same with real engines and with the fakes of the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_state
from maxpo.config import Config
from maxpo.data.order import PromptStream
from maxpo.errors import LearnerLostError, RemoteError, RunError
from maxpo.estimators.k_schedule import PassRates
from maxpo.evaluation.figures import EvalReport
from maxpo.evaluation.measure import measure
from maxpo.evaluation.report import report
from maxpo.files import step_name
from maxpo.loop.collect import sample
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.state import TOTALS, RunResult, state_of, take_over
from maxpo.protocols import Learner, Rollouts
from maxpo.timing import timed
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt

REFUSED_STEPS = 20
"""Training steps in a row without one optimizer step, since loss or gradient was never finite, that end a run."""


def train(
    config: Config,
    stream: PromptStream,
    held_out: Sequence[Prompt],
    rollouts: Rollouts,
    learner: Learner,
    log: RunLog,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
    resume_from: Path | None = None,
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
        checkpoints: where to save; None: nowhere.
        resume_from: a verified checkpoint to go on from; `log` was cut after its step.
    """
    result = RunResult()
    rates = PassRates()
    if resume_from is not None:
        learner.load(resume_from / "learner", take_over(read_state(resume_from), result, stream, rates))
    version = publish(rollouts, learner)["weights/version"]

    def evaluate_if_due() -> None:
        """After a resume the evaluation of its step may be there already, or have been left out by the stop."""
        due = evaluation_due(config, result.steps) and result.steps not in result.evaluations
        if due and not (result.steps and should_stop()):
            result.evaluations[result.steps] = evaluate(config, held_out, rollouts, log, observer, result.steps)

    evaluate_if_due()
    refused_in_a_row = 0
    for step in range(result.steps + 1, config.run.steps + 1):
        if should_stop():
            break
        written = checkpoints.poll() if checkpoints else {}
        started = time.perf_counter()
        batch, metrics = sample(config, stream, rates, rollouts, log, observer, step)
        if batch.groups:
            observer.stage("update")
            rollouts.rest()
            try:
                metrics |= learner.update(batch).metrics
            except LearnerLostError:
                raise  # the groups are not to blame
            except RemoteError as error:
                file = log.dump(step_name(step, "failed_step"), batch.groups)
                raise RunError(f"{error}\nThe groups of step {step} are in {file}.") from error
            if metrics["train/refused_steps"]:
                log.dump(step_name(step, "nonfinite_step"), batch.groups)
            all_refused = metrics["train/refused_steps"] == config.algorithm.minibatches
            refused_in_a_row = refused_in_a_row + 1 if all_refused else 0
            observer.stage("sync")
            metrics |= publish(rollouts, learner)
            version = metrics["weights/version"]
            metrics["throughput/train_tokens_per_s"] = metrics["train/tokens"] / metrics["time/update_s"]
        del batch  # else its groups would be kept while the next ones are sampled
        metrics |= rollouts.metrics() | written
        metrics |= {"data/epoch": stream.epoch, "time/step_s": time.perf_counter() - started}
        log.log(step, metrics)
        if refused_in_a_row == REFUSED_STEPS:
            raise RunError(
                f"loss or gradient was not finite in every optimizer step of the last {REFUSED_STEPS} training steps; "
                "their groups are in rollouts/nonfinite_step_*.jsonl"
            )
        observer.step_done(step, metrics)
        result.history.append(metrics)
        result.totals.update({name: int(metrics.get(name, 0)) for name in TOTALS})
        result.steps = step
        evaluate_if_due()
        every = config.checkpoint.every
        if checkpoints is not None and every and (step % every == 0 or step == config.run.steps or should_stop()):
            observer.stage("checkpoint")
            timing: dict[str, float] = {}
            with timed(timing, "time/checkpoint_s"):
                found = result.evaluations[step].metrics() if step in result.evaluations else {}
                state = state_of(result, stream, rates, version)
                checkpoints.write(
                    step, state, metrics | found, lambda folder: learner.save(folder, policy=config.checkpoint.policy)
                )
            log.log(step, timing)
    if checkpoints is not None:
        if written := checkpoints.wait():
            log.log(result.steps, written)
        result.saved_step = max(result.saved_step, checkpoints.saved_step)
    result.stopped = should_stop()
    return result


def evaluate(
    config: Config, held_out: Sequence[Prompt], rollouts: Rollouts, log: RunLog, observer: Observer, step: int
) -> EvalReport:
    """Evaluate the current weights."""
    timing: dict[str, float] = {}
    with timed(timing, "time/eval_s"):
        observer.stage("evaluate", len(held_out))
        scored, results = measure(config.eval, held_out, rollouts, lambda group: observer.advance())
        try:
            result = report(results, config.eval.k, greedy=config.eval.greedy)
        except ValueError as error:
            raise RunError(f"evaluation at step {step}: {error}") from error
    log.log(step, result.metrics() | timing)
    for name, groups in scored.items():
        log.log_rollouts(step_name(step, name), groups)
    observer.evaluated(step, result)
    return result


def evaluation_due(config: Config, step: int) -> bool:
    """Whether the settings ask for an evaluation after this many steps."""
    if step == 0:
        return config.eval.at_start
    return (config.eval.every > 0 and step % config.eval.every == 0) or (
        step == config.run.steps and config.eval.at_end
    )

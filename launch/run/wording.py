"""Sentences that describe a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launch.cluster.paths import JOB
from maxpo.config import AlgorithmConfig, Config, EvalConfig
from maxpo.data.order import Mixture
from maxpo.estimators.names import BEYOND_K
from maxpo.types import Prompt


def banner(config: Config, prompts: Mixture, held_out: Sequence[Prompt]) -> str:
    """Return lines with the size of a step, of the run and of an evaluation."""
    a = config.algorithm
    sequences = a.prompts_per_step * a.group_size
    return (
        f"{config.run.steps} steps; one step: {a.prompts_per_step} prompts x {a.group_size} completions = {sequences} "
        f"sequences of up to {config.data.max_prompt_tokens} + {config.rollout.max_new_tokens} tokens, "
        f"{a.minibatches} optimizer step(s) of {a.prompts_per_step // a.minibatches} prompts\n"
        f"{passes(prompts, config.run.steps * a.prompts_per_step)}; "
        f"advantages {a.advantage}{_k_in_words(a)}; "
        f"{config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)"
        f"{_evaluation(config.eval, len(held_out))}"
    )


def _evaluation(settings: EvalConfig, prompts: int) -> str:
    """Return a line with the size of an evaluation, or nothing without evaluations."""
    if not prompts:
        return ""
    short = f" (all that there are: eval.prompts = {settings.prompts})" if prompts < settings.prompts else ""
    return f"\n{prompts} held-out prompts{short} x {settings.samples} completions per evaluation"


def _k_in_words(algorithm: AlgorithmConfig) -> str:
    """Return the K of the run, or nothing for an estimator that does not use K."""
    if algorithm.advantage not in BEYOND_K:
        return ""
    values = algorithm.k_values
    match algorithm.k_schedule:
        case "constant":
            return f" with K = {algorithm.k}"
        case "linear":
            return f" with K from {values[0]} to {values[-1]} in a straight line"
        case "stepwise":
            changes = (f"{k} from step {step}" for k, step in zip(values[1:], algorithm.k_steps, strict=True))
            return f" with K = {', '.join([str(values[0]), *changes])}"
        case "adaptive":
            return f" with K from {values[0]} to {values[-1]} by each prompt's pass rate"


def resume_command(folder: Path) -> str:
    """Return the command that continues a run. The settings of a Ray job exist only while the job runs."""
    return (
        "the command that submitted it, and checkpoint.resume=auto" if JOB in os.environ else f"maxpo resume {folder}"
    )


def passes(prompts: Mixture, draws: int) -> str:
    """Return the number of training prompts, and how often the run goes through them."""
    total = f"{len(prompts)} training prompts"
    if len(prompts.parts) == 1:
        return f"{total} = {draws / len(prompts):.2f} passes"
    each = (
        f"{draws * weight / sum(prompts.weights) / len(part):.2f} of {name}"
        for name, weight, part in zip(prompts.names, prompts.weights, prompts.parts, strict=True)
    )
    return f"{total}, passes: {', '.join(each)}"

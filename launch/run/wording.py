"""What a run says of itself."""

from __future__ import annotations

import os
from pathlib import Path

from launch.cluster.paths import JOB
from maxpo.config import Config
from maxpo.data.order import Mixture


def banner(config: Config, prompts: Mixture) -> str:
    """What one step means, in numbers."""
    a = config.algorithm
    sequences = a.prompts_per_step * a.group_size
    return (
        f"{config.run.steps} steps; one step: {a.prompts_per_step} prompts x {a.group_size} completions = {sequences} "
        f"sequences of up to {config.data.max_prompt_tokens} + {config.rollout.max_new_tokens} tokens, "
        f"{a.minibatches} optimizer step(s) of {a.prompts_per_step // a.minibatches} prompts\n"
        f"{passes(prompts, config.run.steps * a.prompts_per_step)}; "
        f"advantages {a.advantage}"
        + (f" with K = {a.k}" if a.advantage in ("maxpo", "pkpo_loo_minus_one") else "")
        + f"; {config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)"
    )


def resume_command(folder: Path) -> str:
    """How a run goes on: a job's settings and files are only there for as long as it runs."""
    return (
        "the command that submitted it, and checkpoint.resume=auto" if JOB in os.environ else f"maxpo resume {folder}"
    )


def passes(prompts: Mixture, draws: int) -> str:
    """How often a run sees its prompts."""
    total = f"{len(prompts)} training prompts"
    if len(prompts.parts) == 1:
        return f"{total} = {draws / len(prompts):.2f} passes"
    each = (
        f"{draws * weight / sum(prompts.weights) / len(part):.2f} of {name}"
        for name, weight, part in zip(prompts.names, prompts.weights, prompts.parts, strict=True)
    )
    return f"{total}, passes: {', '.join(each)}"

"""Trials of the user's own functions: the verifier on the first prompt, in the processes in which it will run, and
estimators and loss on small batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from maxpo.config import AlgorithmConfig, Config, RewardConfig
from maxpo.errors import RunError
from maxpo.estimators.own import own_problems as own_estimator_problems
from maxpo.losses.policy import own_problems as own_loss_problems
from maxpo.rewards.registry import names_in_use
from maxpo.types import Completion, Group, Prompt
from maxpo.wording import shown
from rollout.scoring.verifier_pool import RewardPool


def own_verifiers(reward: RewardConfig) -> list[str]:
    """Return the verifiers that are functions of the user, and the function of `reward.group`."""
    return sorted(name for name in (*names_in_use(reward), reward.group or "") if ":" in name)


def function_problems(algorithm: AlgorithmConfig) -> Iterator[str]:
    """Yield what is wrong with the estimators and the loss of the user."""
    for key in ("advantage", "mix_with", "shadow"):
        names = getattr(algorithm, key) or []
        for name in [names] if isinstance(names, str) else names:
            if ":" in name:
                problems = own_estimator_problems(name, algorithm.group_size, algorithm.k)
                yield from (f"algorithm.{key}: {problem}" for problem in problems)
    if ":" in algorithm.loss:
        yield from (f"algorithm.loss: {problem}" for problem in own_loss_problems(algorithm.loss))


def trial_problems(config: Config, prompt: Prompt) -> Iterator[str]:
    """Yield why a verifier of the user cannot score an answer to the first prompt. The answer is the reference.

    An answer that is no answer may be scored in any way: only errors, a timeout and the end of the process count.
    """
    reward = config.reward
    text = prompt.reference if isinstance(prompt.reference, str) else str(prompt.reference)
    completion = Completion(
        text=text[:1000],
        token_ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        finish_reason="stop",
        versions=(),
    )
    pool = RewardPool(replace(reward, workers=1), config.rollout.max_new_tokens)
    try:
        scored = pool.score([Group(prompt=prompt, completions=(completion, completion))])
        outcome, judged = scored[0].outcomes[0], pool.judge(scored)[0].outcomes[0]
    except RunError as error:
        outcome = judged = str(error)
    finally:
        pool.shutdown()
    words = {"timeout": f"no result within reward.timeout_s = {reward.timeout_s:g} s", "died": "its process ended"}
    if outcome not in ("ok", "too_long"):
        yield (
            f"reward.verifier: {', '.join(own_verifiers(reward))} failed on the first prompt, with the reference as "
            f"answer: {shown(words.get(outcome, outcome), 500)}. Mend the function, or its reading of the references"
        )
    elif judged != outcome:
        yield (
            f"reward.group: {reward.group} failed on the first prompt, with the reference as both answers: "
            f"{shown(words.get(judged, judged), 500)}. Mend the function"
        )

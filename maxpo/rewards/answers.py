"""Answers of completions, for the majority vote `maj@n` of an evaluation.

Only verifiers that look for an answer have them. Others score the full text, or accept many different texts, so a vote
would mean nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.rewards.verifiers import choice, exact, math_answer, numeric, reasoning_gym
from maxpo.types import Prompt

ANSWERS: Mapping[str, Callable[..., str | None]] = {
    "exact": exact.answer,
    "numeric": numeric.answer,
    "math": math_answer.answer,
    "choice": choice.answer,
    "reasoning_gym": reasoning_gym.answer,
}
"""Verifier -> the answer in a text, equal texts for equal answers, None for none. Takes the verifier's settings."""

FindAnswer = Callable[[str], str | None]


def find_answer(reward: RewardConfig, source: str) -> FindAnswer | None:
    """Return the function that finds the answers to prompts of a source. None: their verifier does not define answers.

    For `combined` exactly one part must define answers.
    """
    name = reward.by_source.get(source, reward.verifier)
    names = [part for part in reward.parts if part in ANSWERS] if name == COMBINED else [name]
    if len(names) != 1 or names[0] not in ANSWERS:
        return None
    return functools.partial(ANSWERS[names[0]], **reward.args.get(names[0], {}))


def answers_of(reward: RewardConfig) -> Callable[[Prompt, str], str | None]:
    """Return a function that finds the answer of a completion, for prompts of every source."""

    def answer(prompt: Prompt, text: str) -> str | None:
        find = find_answer(reward, prompt.source)
        return None if find is None else find(text)

    return answer

"""What the answer of a completion is, for the majority vote `maj@n` of an evaluation.

Only of verifiers that look for one. There is none for those that judge a text as a whole, or where many different texts
are right: a vote on raw text would say nothing.
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
    """What finds the answers to prompts of a source; None where their verifier does not say what an answer is.

    Of `combined` it is the one part that says it; None where none or several do.
    """
    name = reward.by_source.get(source, reward.verifier)
    names = [part for part in reward.parts if part in ANSWERS] if name == COMBINED else [name]
    if len(names) != 1 or names[0] not in ANSWERS:
        return None
    return functools.partial(ANSWERS[names[0]], **reward.args.get(names[0], {}))


def answers_of(reward: RewardConfig) -> Callable[[Prompt, str], str | None]:
    """The answer of a completion, for the prompts of every source for which there is one to be found."""

    def answer(prompt: Prompt, text: str) -> str | None:
        find = find_answer(reward, prompt.source)
        return None if find is None else find(text)

    return answer

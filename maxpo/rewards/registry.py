"""All verifiers by name, and what judges an answer to a prompt."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED, ENVIRONMENT
from maxpo.plugins import mistakes
from maxpo.rewards.base import Score, Verifier, environment_reward
from maxpo.rewards.code.verifier import code, code_unsafe_no_sandbox
from maxpo.rewards.verifiers.choice import choice
from maxpo.rewards.verifiers.countdown import countdown
from maxpo.rewards.verifiers.exact import exact
from maxpo.rewards.verifiers.json_schema import json_schema
from maxpo.rewards.verifiers.length import length
from maxpo.rewards.verifiers.math_answer import math_answer
from maxpo.rewards.verifiers.maze import maze
from maxpo.rewards.verifiers.numeric import numeric
from maxpo.rewards.verifiers.reasoning_gym import reasoning_gym
from maxpo.rewards.verifiers.regex import regex
from maxpo.rewards.verifiers.thinking_format import thinking_format
from maxpo.types import Prompt

REWARDS: dict[str, Verifier] = {
    "code": code,
    "code_unsafe_no_sandbox": code_unsafe_no_sandbox,
    "countdown": countdown,
    ENVIRONMENT: environment_reward,
    "exact": exact,
    "maze": maze,
    "numeric": numeric,
    "math": math_answer,
    "choice": choice,
    "reasoning_gym": reasoning_gym,
    "regex": regex,
    "json_schema": json_schema,
    "format": thinking_format,
    "length": length,
}


NEEDS: Mapping[str, tuple[str, str]] = {
    "math": ("math_verify", 'pip install "maxpo[math]"'),
    "json_schema": ("jsonschema", "pip install jsonschema"),
    "reasoning_gym": ("reasoning_gym", 'pip install "maxpo[reasoning-gym]"'),
}
"""What a verifier imports that the core does not, and how to get it."""


Scorer = Callable[[str, str, Any], Score]
"""Prompt, answer and reference to the verdict: how the pool calls every verifier."""


_NONE: Mapping[str, Any] = {}


def find_verifier(name: str, args: Mapping[str, Any] = _NONE, parts: Mapping[str, float] = _NONE) -> Scorer:
    """A verifier of `REWARDS`, a function of your own as `package.module:function`, or `combined`: several of them.

    Your own is called with (prompt text, completion text, reference), sync or async, and returns a number, or a dict
    of named parts that add up to the reward and are logged one by one. It must be pure: it runs in other processes.

    Args:
        name: The verifier.
        args: Settings of each verifier, by its name.
        parts: Weights of the verifiers that `combined` adds up.

    Raises:
        ValueError: there is no such verifier, it does not take these settings, or what it imports is not installed.
    """
    if name == COMBINED:
        if not parts or COMBINED in parts:
            raise ValueError(f"{COMBINED} needs weights of other verifiers, got {sorted(parts)}")
        judges = {part: find_verifier(part, args) for part in parts}
        return lambda prompt, text, reference: _combine(
            {part: judge(prompt, text, reference) for part, judge in judges.items()}, parts
        )
    function = REWARDS[name] if name in REWARDS else _own(name)
    if wrong := mistakes(name, function, args.get(name, _NONE)):
        raise ValueError(" ".join(wrong))
    call = functools.partial(function, **args.get(name, _NONE))
    if name not in REWARDS:
        return lambda prompt, text, reference: _as_score(call(prompt, text, reference))
    if name in NEEDS:
        module, how = NEEDS[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"verifier {name} needs the package {module}, which is not installed: {how}")
        importlib.import_module(module)  # now, and not in the time limit of the first answer
    return lambda prompt, text, reference: call(text, reference)


def find_scorer(reward: RewardConfig) -> Callable[[Prompt, str], Score]:
    """What judges an answer to a prompt: the verifier of its source in `reward.by_source`, else `reward.verifier`.

    Raises:
        ValueError: as `find_verifier` does.
    """
    usual = find_verifier(reward.verifier, reward.args, reward.parts)
    special = {source: find_verifier(name, reward.args, reward.parts) for source, name in reward.by_source.items()}
    return lambda prompt, text: special.get(prompt.source, usual)(prompt.text, text, prompt.reference)


def unread(reward: RewardConfig, source: str) -> Score:
    """The score of an answer over `reward.max_chars`, which is not read: 0, and of `length` the whole penalty.

    Otherwise an answer would escape its penalty by being longer still.
    """
    scores = {name: Score(reward=-1.0 if name == "length" else 0.0) for name in (*REWARDS, *reward.parts)}
    name = reward.by_source.get(source, reward.verifier)
    if name == COMBINED:
        return _combine({part: scores[part] for part in reward.parts}, reward.parts)
    return scores.get(name, Score(reward=0.0))


def names_in_use(reward: RewardConfig) -> set[str]:
    """Every verifier that may judge an answer, `combined` taken apart."""
    named = {reward.verifier, *reward.by_source.values()}
    return (named - {COMBINED}) | set(reward.parts if COMBINED in named else ())


def _combine(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """The weighted sum. Its parts are each verifier's own reward, unweighted, and below that name its parts."""
    parts: dict[str, float] = {}
    for name, score in scores.items():
        shown = name.replace(":", ".")  # as in the name of a metric
        parts[shown] = score.reward
        parts |= {f"{shown}/{part}": value for part, value in score.parts.items()}
    return Score(reward=sum(weights[name] * score.reward for name, score in scores.items()), parts=parts)


def _own(name: str) -> Callable[..., Any]:
    module, separator, function = name.partition(":")
    if not separator:
        known = sorted([*REWARDS, COMBINED])
        raise ValueError(f"no verifier is called {name!r}: use one of {known}, or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"verifier {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"verifier {name!r} is no function")
    return found


def _as_score(value: Any) -> Score:
    """What a custom reward returned, as a score.

    Raises:
        TypeError: it is neither a finite number nor a dict of them.
    """
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    parts = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    numbers: list[Any] = list(parts.values()) if parts else [value]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise TypeError(f"a reward must be a finite number or a dict of them, not {value!r}")
    return Score(reward=float(sum(numbers)), parts={str(k): float(v) for k, v in parts.items()})

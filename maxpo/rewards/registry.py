"""All verifiers by name, and the verifier of each prompt."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Mapping
from typing import SupportsFloat, cast

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED, ENVIRONMENT
from maxpo.plugins import find, is_function, mistakes
from maxpo.rewards.base import Score, Verifier, add_up, agreed, environment_reward, succeeds
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
SHAPING = (ENVIRONMENT, "format", "length")
"""Verifiers that have no opinion about success."""
NEEDS: Mapping[str, tuple[str, str]] = {
    "math": ("math_verify", 'pip install "maxpo[math]"'),
    "json_schema": ("jsonschema", "pip install jsonschema"),
    "reasoning_gym": ("reasoning_gym", 'pip install "maxpo[reasoning-gym]"'),
}
"""Verifier -> a module that it imports and the core does not, and the command that installs the module."""

Scorer = Callable[[str, str, object], Score]
"""Scores an answer. Arguments: prompt, answer, reference."""

_NO_ARGS: Mapping[str, Mapping[str, object]] = {}
_NO_PARTS: Mapping[str, float] = {}


def find_verifier(
    name: str, args: Mapping[str, Mapping[str, object]] = _NO_ARGS, parts: Mapping[str, float] = _NO_PARTS
) -> Scorer:
    """Return a verifier of `REWARDS`, a user's function as `package.module:function`, or `combined`: several of them.

    A user's function is called with (prompt text, completion text, reference), sync or async. It returns a number,
    or a dict of named parts, which add up to the reward and are logged one by one, or a `Score`. A number or a sum of 1
    or more is a success, up to rounding. A `Score` says itself what a success is, or has no opinion. The function must
    be pure, because it runs in other processes.

    Args:
        name: Name of the verifier.
        args: Settings of each verifier, by its name.
        parts: Weights of the verifiers that `combined` adds up.

    Raises:
        ValueError: The verifier does not exist, does not take these settings, or needs a package that is missing.
    """
    if name == COMBINED:
        if not parts or COMBINED in parts:
            raise ValueError(f"{COMBINED} needs weights of other verifiers, got {sorted(parts)}")
        scorers = {part: find_verifier(part, args) for part in parts}
        return lambda prompt, text, reference: _combine(
            {part: scorer(prompt, text, reference) for part, scorer in scorers.items()}, parts
        )
    function: Callable[..., object] = find(
        name,
        REWARDS,
        "verifier",
        form="package.module:function or file.py:function",
        fits=is_function,
        needed="a function (a class is none)",
        others=(COMBINED,),
    )
    if wrong := mistakes(name, function, args.get(name, {})):
        raise ValueError(" ".join(wrong))
    if name not in REWARDS:
        return _own(name, function, args.get(name, {}))
    call = functools.partial(function, **args.get(name, {}))
    if name in NEEDS:
        module, how = NEEDS[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"verifier {name} needs the package {module}, which is not installed: {how}")
        importlib.import_module(module)  # now, and not in the time limit of the first answer
    return lambda prompt, text, reference: call(text, reference)


def _own(name: str, function: Callable[..., object], given: Mapping[str, object]) -> Scorer:
    """Return the scorer of a user's function. Its errors have a note with file and line.

    Raises:
        ValueError: The function cannot be called with (prompt, text, reference) and its settings.
    """
    try:
        inspect.signature(function).bind("", "", None, **given)
    except TypeError as error:
        called = ", ".join(("prompt", "text", "reference", *given))
        raise ValueError(f"verifier {name} is called with ({called}): {error}") from error

    def score(prompt: str, text: str, reference: object) -> Score:
        try:
            return _as_score(function(prompt, text, reference, **given))
        except Exception as error:
            error.add_note(_place(error, function))
            raise

    return score


def _place(error: BaseException, function: Callable[..., object]) -> str:
    """Return file and line of an error within a function or what it calls, or of the function itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(inspect.unwrap(function))]
    if frame := next(iter(own[::-1] or frames[::-1]), None):
        return f"{frame.filename}:{frame.lineno}"
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else str(function)


def find_scorer(reward: RewardConfig) -> Callable[[Prompt, str], Score]:
    """Return a function that scores an answer to a prompt.

    The function uses the verifier of the prompt's source in `reward.by_source`, or else `reward.verifier`.

    Raises:
        ValueError: See `find_verifier`.
    """
    usual = find_verifier(reward.verifier, reward.args, reward.parts)
    special = {source: find_verifier(name, reward.args, reward.parts) for source, name in reward.by_source.items()}
    return lambda prompt, text: special.get(prompt.source, usual)(prompt.text, text, prompt.reference)


def unread(reward: RewardConfig, source: str) -> Score | None:
    """Return the score of an answer over `reward.max_chars`, which is not read. None: nobody can tell, so it is masked.

    `length` gives its full penalty, since its `cap` is at most `reward.max_chars`. `environment` reads no answer.
    """
    known = {"length": Score(reward=-1.0), ENVIRONMENT: Score(reward=0.0)}
    return known.get(reward.by_source.get(source, reward.verifier))


def names_in_use(reward: RewardConfig) -> set[str]:
    """Return the names of all verifiers that may score an answer, with the parts of `combined` in its place."""
    named = {reward.verifier, *reward.by_source.values()}
    return (named - {COMBINED}) | set(reward.parts if COMBINED in named else ())


def _combine(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """Return the weighted sum. Its parts are the unweighted reward of each verifier and, below its name, its parts.

    It is a success if every verifier with a positive weight and an opinion says so. A verifier of weight 0 is only
    logged, and one of negative weight is a penalty.
    """
    parts: dict[str, float] = {}
    for name, score in scores.items():
        metric = name.replace(":", ".")
        parts[metric] = score.reward
        parts |= {f"{metric}/{part}": value for part, value in score.parts.items()}
    return Score(
        reward=add_up([weights[name] * score.reward for name, score in scores.items()]),
        success=agreed(score.success for name, score in scores.items() if weights[name] > 0),
        parts=parts,
    )


def _as_score(value: object) -> Score:
    """Return the result of a user's function as a score.

    Raises:
        TypeError: The result is no finite number, no dict of them, and no `Score` of them.
    """
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    if isinstance(value, Score):
        return _checked(value)
    if (number := _number(value)) is not None:
        return Score(reward=number, success=succeeds(number))
    named = cast("dict[object, object]", value) if isinstance(value, dict) else {}
    parts = {str(name): part for name, member in named.items() if (part := _number(member)) is not None}
    if not parts or len(parts) != len(named):
        raise TypeError(f"a reward must be a finite number, a dict of them or a Score, not {value!r}")
    total = add_up(parts.values())
    return Score(reward=total, success=succeeds(total), parts=parts)


def _checked(score: Score) -> Score:
    """Return the `Score` of a user's function, made of plain values.

    Raises:
        TypeError: A number of the score is not finite, or `success` is not True, False or None.
    """
    reward, parts = _number(score.reward), {str(name): _number(part) for name, part in score.parts.items()}
    known = {name: part for name, part in parts.items() if part is not None}
    if reward is None or len(known) != len(score.parts) or score.success not in (True, False, None):
        raise TypeError(f"a Score must have finite numbers, and success True, False or None, not {score!r}")
    success = None if score.success is None else bool(score.success)
    return Score(reward=reward, success=success, parts=known)


def _number(value: object) -> float | None:
    """Return a finite number of any library as a float: of NumPy, a tensor of one element, Decimal, Fraction.

    None: it is no finite number. Text is none, although `float` reads it.
    """
    if not isinstance(value, SupportsFloat) or isinstance(value, str | bytes | bytearray):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # a tensor of several elements, for example
        return None
    return number if math.isfinite(number) else None

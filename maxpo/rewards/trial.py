"""Trials of verifiers before a run: each reference is read, and a user's function is called once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.rewards.code.cases import read_tests
from maxpo.rewards.registry import NEEDS, REWARDS, find_verifier
from maxpo.rewards.verifiers import math_answer
from maxpo.runtime.background import Background
from maxpo.types import Prompt

_ITSELF: Mapping[str, str] = {"exact": "{}", "numeric": "{}", "choice": "{}", "math": "\\boxed{{{}}}"}
"""Verifier -> an answer that repeats the reference, which must be right."""
_WITH_REFERENCE = ("countdown", "maze", "regex", "json_schema")
"""Other verifiers that raise an error for a reference that makes no sense, whatever the answer."""
_TRIAL_S = 60.0
"""Seconds in which a user's function must return once, since its first call may load something."""


def reference_check(reward: RewardConfig) -> Callable[[object, str], None]:
    """Return a function that raises ValueError if the reference of a row (reference, source) is no good.

    The verifiers of the source must be able to read the reference. `exact`, `numeric`, `choice` and `math` must also
    judge it right as an answer. Functions of users are not called.
    """

    known: set[tuple[str, type, object]] = set()

    def check(reference: object, source: str) -> None:
        key = (source, type(reference), reference if isinstance(reference, str | int | float) else None)
        if key[2] is not None and key in known:
            return
        for name in _names(reward, source):
            if name in REWARDS and not _lacks_package(name):
                _check(name, reference, reward.args.get(name, {}))
        known.add(key)

    return check


def _lacks_package(name: str) -> bool:
    """Return True if a verifier cannot run here, which `find_verifier` tells."""
    return name in NEEDS and importlib.util.find_spec(NEEDS[name][0]) is None


def _names(reward: RewardConfig, source: str) -> Iterable[str]:
    name = reward.by_source.get(source, reward.verifier)
    return reward.parts if name == COMBINED else (name,)


def _check(name: str, reference: object, args: Mapping[str, object]) -> None:
    if name in ("code", "code_unsafe_no_sandbox"):
        read_tests(reference)
    elif name in _WITH_REFERENCE:
        try:
            REWARDS[name]("", reference, **args)
        except ValueError:
            raise
        except Exception as error:
            form = f"{name}: the reference {reference!r:.80} has not the form of docs/verifiers.md"
            raise ValueError(f"{form} ({type(error).__name__}: {error})") from error
    elif name == "math" and math_answer.only_library_reads(reference):
        return  # The work of the library has no bound.
    elif name in _ITSELF:
        for single in cast("list[object]", reference) if isinstance(reference, list) else [reference]:
            text = _ITSELF[name].format(single)
            if name == "math" and isinstance(single, str) and "\\boxed" in single:
                text = single
            if not REWARDS[name](text, reference, **args).success:
                raise ValueError(f"{name}: the reference {single!r:.80} is judged wrong as an answer to itself")


def try_functions(reward: RewardConfig, prompts: Iterable[Prompt]) -> None:
    """Call each user's function once, with the first prompt that it is for and its reference as the answer.

    Raises:
        ValueError: The function fails, takes too long or returns no reward. The message has its file and line.
    """
    left = {name for name in (reward.verifier, *reward.by_source.values(), *reward.parts) if ":" in name}
    for prompt in prompts:
        for name in left & set(_names(reward, prompt.source)):
            left.remove(name)
            _try(name, reward, prompt)
        if not left:
            return


def _try(name: str, reward: RewardConfig, prompt: Prompt) -> None:
    call = find_verifier(name, reward.args)
    answer = prompt.reference if isinstance(prompt.reference, str) else str(prompt.reference)
    trial = Background(lambda: call(prompt.text, answer, prompt.reference))
    try:
        trial.result(_TRIAL_S)
    except Exception as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise ValueError(
            f"reward.verifier: {name} fails on the first prompt, {prompt.prompt_id}, with its reference as the answer: "
            f"{type(error).__name__}: {error}{notes}"
        ) from error

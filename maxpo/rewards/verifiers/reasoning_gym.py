"""The verifier of the reasoning-gym task (`maxpo.tasks.reasoning_gym`), which uses the package's own scoring."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from typing import Any

from maxpo.rewards.base import Score, succeeds


def reasoning_gym(text: str, reference: Any) -> Score:
    """Return the dataset's score of an answer, which may be partial. The full score, 1, is a success.

    The answer is the text between the last `<answer>` and `</answer>`, or the full text without such a pair. White
    space at both ends does not count.

    Args:
        text: Any text.
        reference: `{"dataset": "gcd", "settings": {}, "entry": {...}}`, with the problem unchanged from the dataset.

    Returns:
        The reward, and the part `format`: 1 if there are answer tags, otherwise 0.

    Raises:
        ValueError: The package or the dataset does not exist.
        Exception: The dataset's scoring fails on the answer. The sample is then masked.
    """
    extracted, tagged = _extract(text)
    made = _dataset(reference["dataset"], json.dumps(reference["settings"], sort_keys=True))
    score = float(made.score_answer(extracted, reference["entry"]))
    return Score(reward=score, success=succeeds(score), parts={"format": float(tagged)})


def answer(text: str) -> str | None:
    """Return the text between the tags or, without them, the full text, for `maj@n`. None if it is blank."""
    return _extract(text)[0] or None


def _extract(text: str) -> tuple[str, bool]:
    """Return the text that the dataset scores, and True if tags surrounded the text."""
    _, opening, rest = text.rpartition("<answer>")
    inside, closing, _ = rest.partition("</answer>")
    tagged = bool(opening and closing)
    return (inside if tagged else text).strip(), tagged


@functools.cache
def _dataset(name: str, settings: str) -> Any:
    return make_dataset(name, json.loads(settings), seed=0, size=1)


def make_dataset(name: str, settings: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """Return a dataset of the package. Some datasets make all their `size` problems at once.

    Raises:
        ValueError: The package, the dataset or a setting does not exist.
    """
    try:
        package = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ValueError("reasoning_gym is not installed: pip install 'maxpo[reasoning-gym]'") from error
    known = importlib.import_module("reasoning_gym.factory").DATASETS
    if name not in known:
        raise ValueError(f"reasoning_gym: dataset = {name} must be one of {', '.join(sorted(known))}")
    try:
        return package.create_dataset(name, seed=seed, size=size, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning_gym: {name} with the settings {dict(settings)}: {error}") from error

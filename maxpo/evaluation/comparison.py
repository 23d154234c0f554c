"""Comparison of two evaluations: differences with paired intervals on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from maxpo.errors import InputError
from maxpo.evaluation.figures import Estimate, JsonObject, PromptResult
from maxpo.evaluation.report import bootstrap, is_graded, per_prompt, usable
from maxpo.evaluation.result_file import Evaluation

SAME = ("eval.samples", "rollout.max_new_tokens", "rollout.temperature")
"""Settings that must be equal because each changes the meaning of the figures. `different_settings` adds sections."""
FREE = {"workers"}
"""Settings of the sections `reward` and `environment` that change only the time, and so may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of both evaluations."""

    a: Estimate
    b: Estimate
    difference: Estimate
    """B - A with a paired interval: prompts are resampled, each with the values of both evaluations."""

    @property
    def excludes_zero(self) -> bool:
        """True if the interval of the difference does not contain 0."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Differences on a set of prompts."""

    figures: dict[str, Difference]
    """Differences by name of the figure, such as `pass@4`. Empty if every prompt was dropped."""
    prompts: int
    dropped_prompts: int
    """Number of prompts with too many invalid samples in either evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison on all prompts and, if the prompts have several sources, on the prompts of each source."""

    overall: Compared
    sources: dict[str, Compared]
    missing: tuple[str, ...]
    """Figures that only one evaluation has and that cannot be compared, in words."""


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations prompt by prompt.

    Every k of either evaluation is estimated for both, because both have the samples. A prompt with too few valid
    samples in one evaluation is left out of both.

    Raises:
        InputError: The prompts differ, or settings differ that change the meaning of a figure, or no prompt is usable
            in both evaluations.
    """
    _check_settings(a, b)
    pairs = _pairs(a, b)
    ks = sorted({k for e in (a, b) for k in e.settings["eval"]["k"]})
    wants = [bool(e.settings["eval"]["greedy"]) for e in (a, b)]
    greedy = all(wants)
    missing = [f"greedy: only in {'AB'[wants.index(True)]}"] if any(wants) and not greedy else []
    kept = [pair for pair in pairs if all(usable(result, ks, greedy) for result in pair)]
    if not kept:
        raise InputError(f"no prompt has {max(ks)} valid samples in both {a.path} and {b.path}")
    graded = any(is_graded([pair[side] for pair in kept]) for side in (0, 1))

    def compared(source: str | None) -> Compared:
        own = [pair for pair in kept if source in (None, pair[0].source)]
        total = sum(source in (None, pair[0].source) for pair in pairs)
        figures: dict[str, Difference] = {}
        if own:
            first, second = (
                per_prompt([pair[side] for pair in own], ks, greedy=greedy, graded=graded) for side in (0, 1)
            )
            figures = {name: _difference(first[name], second[name]) for name in first if name in second}
            missing.extend(
                f"{name}{f' of {source}' if source else ''}: only in {'A' if name in first else 'B'}"
                for name in sorted(first.keys() ^ second.keys())
            )
        return Compared(figures=figures, prompts=len(own), dropped_prompts=total - len(own))

    sources = sorted({first.source for first, _ in pairs})
    overall = compared(None)
    each = {source: compared(source) for source in sources} if len(sources) > 1 else {}
    return Comparison(overall=overall, sources=each, missing=tuple(missing))


def _difference(a: Float[np.ndarray, " P"], b: Float[np.ndarray, " P"]) -> Difference:
    """Return the difference of one figure from its values for each of P prompts."""
    return Difference(a=bootstrap(a), b=bootstrap(b), difference=bootstrap(b - a))


def _check_settings(a: Evaluation, b: Evaluation) -> None:
    """Raise InputError if settings differ that change the meaning of a figure."""
    if wrong := different_settings(a.settings, b.settings):
        lines = "\n  ".join(f"{key}: {x!r} in A, {y!r} in B" for key, (x, y) in wrong.items())
        raise InputError(
            f"{a.path} and {b.path} cannot be compared, settings differ:\n  {lines}\n"
            "Evaluate both with the same settings."
        )


def different_settings(a: Mapping[str, JsonObject], b: Mapping[str, JsonObject]) -> dict[str, tuple[object, object]]:
    """Return the settings that must be equal but differ, each with both values. None stands for a missing value."""
    several_turns = any(settings["environment"]["name"] for settings in (a, b))
    # Without an environment its settings have no effect, and the seed only draws other samples.
    sections = ("environment", "reward") if several_turns else ("reward",)
    names = {f"{s}.{key}" for s in sections for settings in (a, b) for key in settings[s] if key not in FREE}
    different: dict[str, tuple[object, object]] = {}
    for key in (*SAME, *(["run.seed"] if several_turns else []), *sorted(names)):
        section, _, name = key.partition(".")
        values = a[section].get(name), b[section].get(name)
        if values[0] != values[1]:
            different[key] = values
    return different


def _pairs(a: Evaluation, b: Evaluation) -> list[tuple[PromptResult, PromptResult]]:
    """Return the results of both evaluations for each prompt.

    Raises:
        InputError: A prompt is in one evaluation only.
    """
    first, second = _by_prompt(a.results), _by_prompt(b.results)
    only = [sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())]
    if any(only):
        words = [
            f"{len(names)} of {len(own)} are only in {side} (such as {names[0][1]} of source {names[0][0]})"
            for side, names, own in (("A", only[0], first), ("B", only[1], second))
            if names
        ]
        raise InputError(
            f"{a.path} and {b.path} cannot be compared, prompts differ: {'; '.join(words)}. Evaluate both with the "
            "same data, eval.prompts and run.seed."
        )
    return [(result, second[key]) for key, result in first.items()]


def _by_prompt(results: Sequence[PromptResult]) -> dict[tuple[str, str], PromptResult]:
    return {(result.source, result.prompt_id): result for result in results}

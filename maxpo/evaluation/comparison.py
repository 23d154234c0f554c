"""Two evaluations side by side: differences with paired intervals, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maxpo.errors import InputError
from maxpo.evaluation.figures import Estimate, PromptResult
from maxpo.evaluation.report import bootstrap, is_graded, per_prompt, usable
from maxpo.evaluation.result_file import Evaluation

SAME = ("eval.samples", "rollout.max_new_tokens", "rollout.temperature", "rollout.top_k", "rollout.top_p")
"""Settings that must be equal, beside the sections `reward` and `environment`: they change what the figures mean."""
FREE = {"workers"}
"""Of these the settings that change nothing but the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of both."""

    a: Estimate
    b: Estimate
    difference: Estimate
    """B - A, with its paired interval: prompts are resampled, each with both its values."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference does not hold 0."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was found on some prompts."""

    figures: dict[str, Difference]
    """By name, such as `pass@4`; empty where every prompt was dropped."""
    prompts: int
    dropped_prompts: int
    """Too many samples are invalid, in either of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both evaluations, for all prompts and, where there is more than one source, for those of each."""

    overall: Compared
    sources: dict[str, Compared]
    missing: tuple[str, ...]
    """What cannot be compared because only one of them has it, in words."""


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations prompt by prompt.

    Every k that either of them asked for is estimated for both: the samples are there. A prompt with too few valid
    samples in one of them is left out of both.

    Raises:
        InputError: they are not of the same prompts, or settings differ that change what a figure means, or no prompt
            is usable in both.
    """
    if wrong := different_settings(a.settings, b.settings):
        lines = "\n  ".join(f"{key}: {x!r} in A, {y!r} in B" for key, (x, y) in wrong.items())
        raise InputError(
            f"{a.path} and {b.path} cannot be compared, settings differ:\n  {lines}\nEvaluate both with the same ones."
        )
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
            figures = {
                name: Difference(
                    a=bootstrap(first[name]),
                    b=bootstrap(second[name]),
                    difference=bootstrap(second[name] - first[name]),
                )
                for name in first
                if name in second
            }
            missing.extend(
                f"{name}{f' of {source}' if source else ''}: only in {'A' if name in first else 'B'}"
                for name in sorted(first.keys() ^ second.keys())
            )
        return Compared(figures=figures, prompts=len(own), dropped_prompts=total - len(own))

    sources = sorted({first.source for first, _ in pairs})
    overall = compared(None)
    each = {source: compared(source) for source in sources} if len(sources) > 1 else {}
    return Comparison(overall=overall, sources=each, missing=tuple(missing))


def different_settings(
    a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Any, Any]]:
    """The settings that must be equal and are not, with both values; None where there is none."""
    several_turns = any(settings["environment"]["name"] for settings in (a, b))
    # Without an environment its settings do nothing, and neither does the seed but draw other samples.
    whole = ("environment", "reward") if several_turns else ("reward",)
    names = {f"{s}.{key}" for s in whole for settings in (a, b) for key in settings[s] if key not in FREE}
    found: dict[str, tuple[Any, Any]] = {}
    for key in (*SAME, *(["run.seed"] if several_turns else []), *sorted(names)):
        section, _, name = key.partition(".")
        values = a[section].get(name), b[section].get(name)
        if values[0] != values[1]:
            found[key] = values
    return found


def _pairs(a: Evaluation, b: Evaluation) -> list[tuple[PromptResult, PromptResult]]:
    """What both found for each prompt.

    Raises:
        InputError: a prompt is in one of them only.
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

"""Data classes for the results of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxpo.checked_json import parse
from maxpo.rewards.base import succeeds

JsonObject = Mapping[str, Any]
"""Parsed JSON object. The values have no static type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Mean over prompts with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """Result of an evaluation for one prompt with n completions."""

    prompt_id: str
    source: str
    rewards: tuple[float | None, ...]
    """[n] None where the completion could not be scored. Such a completion is masked, and never counts as 0."""
    successes: tuple[bool | None, ...]
    """[n] True where the completion is a success, None where it is masked."""
    votes: tuple[int | None, ...] | None
    """[n] Number of the answer among the different answers to this prompt, None for a completion without an answer.
    None instead of the tuple if the verifier does not extract answers."""
    greedy: float | None
    """Reward of the greedy completion. None if the completion could not be scored, or was not requested."""
    unique: float
    """Number of different completions divided by n."""

    @classmethod
    def from_dict(cls, values: JsonObject) -> PromptResult:
        """Return the result that `dataclasses.asdict` converted, with or without JSON in between.

        Results of version 0.1 have no `successes`. They follow from the rewards there: 1 or more is a success.

        Raises:
            KeyError, TypeError, ValueError: A value is missing or of another type.
        """
        if "successes" not in values:
            successes = [None if reward is None else succeeds(reward) for reward in values["rewards"]]
            values = {**values, "successes": successes}
        result = parse(cls, json.dumps(values))
        numbers = [number for number in (*result.rewards, result.greedy, result.unique) if number is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{result.prompt_id}: a number is not finite")
        if any(len(own) != len(result.rewards) for own in (result.successes, result.votes) if own is not None):
            raise ValueError(f"{result.prompt_id}: rewards, successes and votes are not of one length")
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of a set of prompts."""

    estimates: dict[str, Estimate]
    """Estimates by name, such as `pass@4`. Empty if every prompt was dropped."""
    solved: float
    """Share of the prompts with at least one success."""
    unique: float
    """Mean of `PromptResult.unique`."""
    prompts: int
    """Number of prompts that the figures use."""
    dropped_prompts: int
    """Number of prompts left out because too many of their samples are invalid."""
    no_answer: float | None = None
    """Share of the valid completions without an answer. None if the verifier does not extract answers."""

    def metrics(self) -> dict[str, float]:
        """Return the figures by name. Without prompts, return only the number of dropped prompts."""
        values = {"dropped_prompts": float(self.dropped_prompts)}
        if self.prompts:
            values |= {"solved": self.solved, "unique": self.unique}
        if self.no_answer is not None:
            values["no_answer"] = self.no_answer
        for name, estimate in self.estimates.items():
            values |= {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Figures of all prompts and, if the prompts have several sources, of the prompts of each source."""

    overall: Figures
    sources: dict[str, Figures]

    @classmethod
    def from_dict(cls, values: JsonObject) -> EvalReport:
        """Return the report that `dataclasses.asdict` converted, with or without JSON in between.

        Reports of version 0.1 are read too.

        Raises:
            KeyError, TypeError, ValueError: A value is missing or of another type.
        """
        if "at_k" in values:
            estimates = {f"{values['objective']}@{k}": estimate for k, estimate in values["at_k"].items()}
            kept = {name: values[name] for name in ("solved", "unique", "prompts", "dropped_prompts")}
            values = {"overall": {"estimates": estimates, **kept}, "sources": {}}
        return parse(cls, json.dumps(values))

    def metrics(self) -> dict[str, float]:
        """Return the report as metrics."""
        values = {f"eval/{name}": value for name, value in self.overall.metrics().items()}
        for source, figures in self.sources.items():
            values |= {f"eval/{source}/{name}": value for name, value in figures.metrics().items()}
        return values

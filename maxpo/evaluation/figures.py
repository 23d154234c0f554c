"""What an evaluation found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """What an evaluation found for one prompt with n completions."""

    prompt_id: str
    source: str
    rewards: tuple[float | None, ...]
    """[n] None where the completion could not be judged: masked, never 0."""
    votes: tuple[int | None, ...] | None
    """[n] Number of the answer among the different answers to this prompt, None where there is none; None where the
    verifier does not say what the answer of a completion is."""
    greedy: float | None
    """Reward of the greedy completion; None where it could not be judged, or none was wanted."""
    unique: float
    """Different completions divided by their number."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptResult:
        """The result that `dataclasses.asdict` took apart, also by way of JSON."""
        lists: Any = {name: values[name] and tuple(values[name]) for name in ("rewards", "votes")}
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was found for some prompts."""

    estimates: dict[str, Estimate]
    """By name, such as `pass@4`; empty where every prompt was dropped."""
    solved: float
    unique: float
    prompts: int
    dropped_prompts: int
    no_answer: float | None = None
    """Share of the valid completions without an answer; None where the verifier does not say what an answer is."""

    def metrics(self) -> dict[str, float]:
        """The figures by name; of no prompts only how many were dropped."""
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
    """What an evaluation found: for all prompts and, where there is more than one source, for those of each."""

    overall: Figures
    sources: dict[str, Figures]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvalReport:
        """The report that `dataclasses.asdict` took apart, also by way of JSON, and also by version 0.1 of it."""
        if "at_k" in values:
            estimates = {f"{values['objective']}@{k}": Estimate(**e) for k, e in values["at_k"].items()}
            kept = {name: values[name] for name in ("solved", "unique", "prompts", "dropped_prompts")}
            return cls(overall=Figures(estimates=estimates, **kept), sources={})
        return cls(
            overall=_figures_from(values["overall"]),
            sources={source: _figures_from(found) for source, found in values["sources"].items()},
        )

    def metrics(self) -> dict[str, float]:
        """The report as metrics."""
        values = {f"eval/{name}": value for name, value in self.overall.metrics().items()}
        for source, figures in self.sources.items():
            values |= {f"eval/{source}/{name}": value for name, value in figures.metrics().items()}
        return values


def _figures_from(values: Mapping[str, Any]) -> Figures:
    estimates: Any = {name: Estimate(**e) for name, e in values["estimates"].items()}
    return Figures(**{**values, "estimates": estimates})

"""Evaluation on held-out prompts: unbiased pass@k and max@k, avg@n, maj@n and greedy, with intervals over prompts.

`docs/evaluation.md` defines the figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float

from maxpo.batches.samples import unique_share
from maxpo.config import EvalConfig
from maxpo.estimators.pass_at_k import max_at_k
from maxpo.protocols import Sampler
from maxpo.types import Group, Prompt, ScoredGroup

BOOTSTRAP_RESAMPLES = 2000


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


def bootstrap(per_prompt: Float[np.ndarray, " P"], seed: int = 0) -> Estimate:
    """Mean and percentile interval from resampling *prompts*: completions of a prompt are not independent problems."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(per_prompt), size=(BOOTSTRAP_RESAMPLES, len(per_prompt)))
    means = per_prompt[picks].mean(1)
    quantiles = cast("list[float]", np.quantile(means, [0.025, 0.975]).tolist())  # pyright: ignore
    return Estimate(value=float(per_prompt.mean()), low=quantiles[0], high=quantiles[1])


def measure(
    config: EvalConfig, held_out: Sequence[Prompt], rollouts: Sampler, on_group: Callable[[Group], None]
) -> tuple[dict[str, list[ScoredGroup]], list[PromptResult]]:
    """Sample and score the held-out prompts: the groups, those of `eval` and `eval_greedy`, and what they say.

    Always with the same seeds, so that two evaluations differ by their weights only.
    """
    groups = rollouts.generate(held_out, config.samples, "eval", on_group)
    greedy = rollouts.generate(held_out, 1, "eval", greedy=True) if config.greedy else []
    scored = rollouts.score([*groups, *greedy])
    sampled, likeliest = scored[: len(groups)], scored[len(groups) :]
    rewards = [g.rewards[0] if g.valid[0] else None for g in likeliest] or [None] * len(sampled)
    answers = rollouts.answers(sampled)
    results = [prompt_result(*found) for found in zip(sampled, answers, rewards, strict=True)]
    return {"eval": sampled} | ({"eval_greedy": likeliest} if config.greedy else {}), results


def prompt_result(
    scored: ScoredGroup, answers: Sequence[str | None] | None = None, greedy: float | None = None
) -> PromptResult:
    """What the samples of a prompt, their answers, and the reward of its greedy completion say of it."""
    prompt = scored.group.prompt
    numbers: dict[str, int] = {}
    for answer in answers or ():
        if answer is not None:
            numbers.setdefault(answer, len(numbers))
    return PromptResult(
        prompt_id=prompt.prompt_id,
        source=prompt.source,
        rewards=tuple(r if ok else None for r, ok in zip(scored.rewards, scored.valid, strict=True)),
        votes=None if answers is None else tuple(None if a is None else numbers[a] for a in answers),
        greedy=greedy,
        unique=unique_share(scored.group),
    )


def usable(result: PromptResult, ks: Sequence[int], greedy: bool) -> bool:
    """Whether a prompt has enough valid samples for every k, and a valid greedy completion where one was wanted."""
    enough = sum(reward is not None for reward in result.rewards) >= max(ks)
    return enough and not (greedy and result.greedy is None)


def is_graded(results: Sequence[PromptResult]) -> bool:
    """Whether any valid reward is neither 0 nor 1."""
    return any(reward not in (None, 0, 1) for result in results for reward in result.rewards)


def majority(rewards: Sequence[float | None], votes: Sequence[int | None]) -> float:
    """Reward of the answer that most valid samples give; of several that are tied, their mean; 0 without a vote.

    The reward of an answer is the mean over the samples that give it: they differ only where the verifier looks at
    more than the answer.
    """
    given: dict[int, list[float]] = {}
    for reward, vote in zip(rewards, votes, strict=True):
        if reward is not None and vote is not None:
            given.setdefault(vote, []).append(reward)
    most = max(map(len, given.values()), default=0)
    winners = [sum(own) / len(own) for own in given.values() if len(own) == most]
    return sum(winners) / len(winners) if winners else 0.0


def per_prompt(
    results: Sequence[PromptResult], ks: Sequence[int], *, greedy: bool, graded: bool
) -> dict[str, Float[np.ndarray, " P"]]:
    """Every figure of each of P usable prompts, by name."""
    valid = torch.tensor([[reward is not None for reward in r.rewards] for r in results])
    rewards = torch.tensor([[reward or 0.0 for reward in r.rewards] for r in results], dtype=torch.float64)
    n = rewards.shape[1]
    solved = (rewards >= 1).double()
    found = {f"pass@{k}": max_at_k(solved, k, valid)[0].numpy() for k in ks}
    if graded:
        found |= {f"max@{k}": max_at_k(rewards, k, valid)[0].numpy() for k in ks}
    found[f"avg@{n}"] = (rewards.sum(1) / valid.sum(1)).numpy()
    votes = [result.votes for result in results]
    if None not in votes:
        pairs = zip(results, cast("list[tuple[int | None, ...]]", votes), strict=True)
        found[f"maj@{n}"] = np.array([majority(result.rewards, own) for result, own in pairs])
    if greedy:
        found["greedy"] = np.array([result.greedy for result in results], dtype=float)
    return found


def report(results: Sequence[PromptResult], ks: Sequence[int], *, greedy: bool = False) -> EvalReport:
    """Estimates for all prompts and, where there are several sources, for those of each.

    A prompt that is not `usable` is left out of every figure, so that all are over the same prompts; the number is
    reported.

    Raises:
        ValueError: no prompt is usable.
    """
    kept = [result for result in results if usable(result, ks, greedy)]
    if not kept:
        wanted = f"{max(ks)} valid samples" + " and a valid greedy completion" * greedy
        raise ValueError(f"no evaluation prompt has {wanted}")
    graded, totals = is_graded(kept), Counter(result.source for result in results)

    def figures(own: Sequence[PromptResult], total: int) -> Figures:
        if not own:
            return Figures(estimates={}, solved=0.0, unique=0.0, prompts=0, dropped_prompts=total)
        values = per_prompt(own, ks, greedy=greedy, graded=graded)
        votes = [
            vote
            for r in own
            if r.votes is not None
            for reward, vote in zip(r.rewards, r.votes, strict=True)
            if reward is not None
        ]
        return Figures(
            estimates={name: bootstrap(value) for name, value in values.items()},
            solved=float(np.mean([any(reward is not None and reward >= 1 for reward in r.rewards) for r in own])),
            unique=float(np.mean([r.unique for r in own])),
            prompts=len(own),
            dropped_prompts=total - len(own),
            no_answer=None if any(r.votes is None for r in own) else votes.count(None) / len(votes),
        )

    several = sorted(totals) if len(totals) > 1 else []
    return EvalReport(
        overall=figures(kept, len(results)),
        sources={s: figures([r for r in kept if r.source == s], totals[s]) for s in several},
    )

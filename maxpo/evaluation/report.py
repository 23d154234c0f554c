"""Figures with intervals, computed from the rewards and successes of every prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float

from maxpo.estimators.pass_at_k import max_at_k
from maxpo.evaluation.figures import Estimate, EvalReport, Figures, PromptResult

BOOTSTRAP_RESAMPLES = 2000
"""Number of resamples of each interval."""


def bootstrap(per_prompt: Float[np.ndarray, " P"], seed: int = 0) -> Estimate:
    """Return the mean and its percentile interval, resampling *prompts* since completions share the problem."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(per_prompt), size=(BOOTSTRAP_RESAMPLES, len(per_prompt)))
    means = per_prompt[picks].mean(1)
    low, high = middle(means)
    return Estimate(value=float(per_prompt.mean()), low=low, high=high)


def middle(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """Return the bounds of the middle 95 % of the values."""
    low, high = cast("list[float]", np.quantile(values, [0.025, 0.975]).tolist())  # pyright: ignore
    return low, high


def usable(result: PromptResult, ks: Sequence[int], greedy: bool) -> bool:
    """Return True if a prompt has enough valid samples for every k, and a valid greedy completion if `greedy`."""
    enough = sum(reward is not None for reward in result.rewards) >= max(ks)
    return enough and not (greedy and result.greedy is None)


def is_graded(results: Sequence[PromptResult]) -> bool:
    """Return True if any valid reward is something else than 1 for a success and 0 otherwise."""
    return any(reward != success for result in results for reward, success in _valid(result))


def _valid(result: PromptResult) -> list[tuple[float, bool]]:
    """Return reward and success of each valid completion."""
    pairs = zip(result.rewards, result.successes, strict=True)
    return [(reward, bool(success)) for reward, success in pairs if reward is not None]


def majority(successes: Sequence[bool | None], votes: Sequence[int | None]) -> float:
    """Return the success, 0 or 1, of the answer that most valid samples give.

    Tied answers give the mean over these answers, and a prompt without a vote gives 0. The success of an answer is the
    share of successes among the samples with this answer, which differ only if the verifier judges more than the
    answer.
    """
    given: dict[int, list[bool]] = {}
    for success, vote in zip(successes, votes, strict=True):
        if success is not None and vote is not None:
            given.setdefault(vote, []).append(success)
    most = max(map(len, given.values()), default=0)
    winners = [sum(own) / len(own) for own in given.values() if len(own) == most]
    return sum(winners) / len(winners) if winners else 0.0


def per_prompt(
    results: Sequence[PromptResult], ks: Sequence[int], *, greedy: bool, graded: bool
) -> dict[str, Float[np.ndarray, " P"]]:
    """Return every figure by name, each for P usable prompts."""
    valid = torch.tensor([[reward is not None for reward in r.rewards] for r in results])
    rewards = torch.tensor([[reward or 0.0 for reward in r.rewards] for r in results], dtype=torch.float64)
    n = rewards.shape[1]
    solved = torch.tensor([[bool(success) for success in r.successes] for r in results], dtype=torch.float64)
    figures = {f"pass@{k}": max_at_k(solved, k, valid)[0].numpy() for k in ks}
    if graded:
        figures |= {f"max@{k}": max_at_k(rewards, k, valid)[0].numpy() for k in ks}
    figures[f"avg@{n}"] = (rewards.sum(1) / valid.sum(1)).numpy()
    votes = [result.votes for result in results]
    if None not in votes:
        pairs = zip(results, cast("list[tuple[int | None, ...]]", votes), strict=True)
        figures[f"maj@{n}"] = np.array([majority(result.successes, own) for result, own in pairs])
    if greedy:
        figures["greedy"] = np.array([result.greedy for result in results], dtype=float)
    return figures


def report(results: Sequence[PromptResult], ks: Sequence[int], *, greedy: bool = False) -> EvalReport:
    """Return the figures of all prompts and, if the prompts have several sources, of the prompts of each source.

    A prompt that is not `usable` is left out of every figure, so that all figures are over the same prompts. The report
    holds the number of these prompts.

    Raises:
        ValueError: No prompt is usable.
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
            solved=float(np.mean([any(r.successes) for r in own])),
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

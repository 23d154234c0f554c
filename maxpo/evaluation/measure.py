"""Evaluation on held-out prompts: unbiased pass@k and max@k, avg@n, maj@n and greedy, with intervals over prompts.

`docs/evaluation.md` defines the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maxpo.batches.samples import unique_share
from maxpo.config import EvalConfig
from maxpo.evaluation.figures import PromptResult
from maxpo.protocols import Sampler
from maxpo.types import Group, Prompt, ScoredGroup


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

"""Evaluation on held-out prompts: unbiased pass@k and max@k, avg@n, maj@n and greedy, with intervals over prompts.

The figures are defined in `docs/evaluation.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maxpo.batches.samples import unique_share
from maxpo.config import EvalConfig
from maxpo.evaluation.figures import PromptResult
from maxpo.protocols import Sampler
from maxpo.rewards.checks import check_some_scored
from maxpo.types import Group, Prompt, ScoredGroup


def measure(
    config: EvalConfig, held_out: Sequence[Prompt], rollouts: Sampler, on_group: Callable[[Group], None]
) -> tuple[dict[str, list[ScoredGroup]], list[PromptResult]]:
    """Sample and score the held-out prompts.

    The seeds are always the same, so that two evaluations differ by their weights only.

    Args:
        config: Settings of the evaluation.
        held_out: Prompts to evaluate.
        rollouts: Sampler and scorer.
        on_group: Callback for each sampled group.

    Returns:
        The scored groups under `eval`, and under `eval_greedy` if greedy completions are wanted. The result of each
        prompt.
    """
    groups = rollouts.generate(held_out, config.samples, "eval", on_group)
    greedy = rollouts.generate(held_out, 1, "eval", greedy=True) if config.greedy else []
    scored = rollouts.score([*groups, *greedy])
    check_some_scored(scored)
    sampled, likeliest = scored[: len(groups)], scored[len(groups) :]
    rewards = [g.rewards[0] if g.valid[0] else None for g in likeliest] or [None] * len(sampled)
    answers = rollouts.answers(sampled)
    results = [prompt_result(*of_prompt) for of_prompt in zip(sampled, answers, rewards, strict=True)]
    return {"eval": sampled} | ({"eval_greedy": likeliest} if config.greedy else {}), results


def prompt_result(
    scored: ScoredGroup, answers: Sequence[str | None] | None = None, greedy: float | None = None
) -> PromptResult:
    """Return the result of a prompt from its samples, their answers, and the reward of its greedy completion."""
    prompt = scored.group.prompt
    numbers: dict[str, int] = {}
    for answer in answers or ():
        if answer is not None:
            numbers.setdefault(answer, len(numbers))
    return PromptResult(
        prompt_id=prompt.prompt_id,
        source=prompt.source,
        rewards=tuple(r if ok else None for r, ok in zip(scored.rewards, scored.valid, strict=True)),
        successes=tuple(s if ok else None for s, ok in zip(scored.successes, scored.valid, strict=True)),
        votes=None if answers is None else tuple(None if a is None else numbers[a] for a in answers),
        greedy=greedy,
        unique=unique_share(scored.group),
    )

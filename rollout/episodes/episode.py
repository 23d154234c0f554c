"""Completions of several turns: the policy and an environment take turns until one of them ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from maxpo.seeds import derive_seed
from maxpo.types import Completion, Episode, Prompt
from rollout.episodes.environment_pool import EnvironmentPool, StepError
from rollout.episodes.observations import ObservationEncoder

Turn = Callable[[str, list[int], int, int], Awaitable[Completion]]
"""Request id, tokens so far, seed and token limit to the policy's next turn, text included."""


async def run_episode(
    name: str,
    prompt: Prompt,
    turn: Turn,
    environments: EnvironmentPool,
    observe: ObservationEncoder,
    *,
    seed: int,
    group_seed: int,
    max_turns: int,
    max_tokens: int,
) -> Completion:
    """One completion in which policy and environment take turns.

    Args:
        name: of the episode, the beginning of its request ids.
        prompt: what comes first.
        turn: samples one turn of the policy.
        environments: answer it.
        observe: writes the answers as tokens.
        seed: of the first turn; those of later ones are derived from it.
        group_seed: what the environment gets, the same for the whole group.
        max_turns: turns of the policy, at most.
        max_tokens: of all turns and observations together.

    Returns:
        The episode, without its text; observations have the loss mask False and log-probabilities of 0. Where the
        environment failed, `episode.outcome` says how. An observation for which no token is left ends it.
    """
    turns: list[Completion] = []
    token_ids: list[int] = []
    logprobs: list[float] = []
    loss_mask: list[bool] = []
    reward, parts, outcome, finish_reason = 0.0, Counter[str](), "ok", "length"
    try:
        state = await environments.reset(prompt, group_seed)
        while True:
            number = len(turns)
            said = await turn(
                f"{name}/{number}",
                [*prompt.token_ids, *token_ids],
                derive_seed(seed, "turn", number) if number else seed,
                max_tokens - len(token_ids),
            )
            turns.append(said)
            token_ids += said.token_ids
            logprobs += said.logprobs
            loss_mask += said.loss_mask
            if said.finish_reason == "abort":
                finish_reason = "abort"
                break
            state, step = await environments.step(state, said.text)
            reward += step.reward
            parts.update(step.parts)
            if step.done:
                # Cut in the middle of its last turn it is as unfinished as any completion.
                finish_reason = said.finish_reason
                break
            seen = observe(step.observation, said.token_ids)
            if len(turns) == max_turns or len(token_ids) + len(seen) >= max_tokens:
                break
            token_ids += seen
            logprobs += [0.0] * len(seen)
            loss_mask += [False] * len(seen)
    except StepError as error:
        outcome, finish_reason = str(error), "stop"
    sampled = [said for said in turns if said.token_ids]
    return Completion(
        text="",
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        loss_mask=tuple(loss_mask),
        finish_reason=finish_reason,
        min_weight_version=min((said.min_weight_version for said in sampled), default=-1),
        max_weight_version=max((said.max_weight_version for said in sampled), default=-1),
        episode=Episode(
            turns=len(turns), answer=turns[-1].text if turns else "", reward=reward, outcome=outcome, parts=dict(parts)
        ),
    )

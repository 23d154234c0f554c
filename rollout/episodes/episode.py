"""Completions of several turns: the policy and an environment alternate until one of them ends the episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from maxpo.environments.base import Step
from maxpo.rewards.base import add_up
from maxpo.seeds import derive_seed
from maxpo.types import Completion, Episode, Prompt
from rollout.episodes.environment_pool import EnvironmentPool, StepError

SampleTurn = Callable[[str, list[int], int, int], Awaitable[Completion]]
"""Samples the policy's next turn, with its text. Arguments: request id, all tokens so far, seed, token limit."""
EncodeObservation = Callable[[str, Sequence[int]], list[int]]
"""Encodes an observation that follows a turn. Arguments: text of the observation, tokens of the turn."""


@dataclass
class _Transcript:
    """The turns and observations of an episode so far. Entry t of each per-token list describes token t."""

    turns: list[Completion] = field(default_factory=list[Completion])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    loss_mask: list[bool] = field(default_factory=list[bool])
    versions: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    rewards: list[float] = field(default_factory=list[float])
    success: bool | None = None
    parts: Counter[str] = field(default_factory=Counter[str])

    def add_turn(self, turn: Completion) -> None:
        self.turns.append(turn)
        self.versions += [(version, len(self.token_ids) + start) for version, start in turn.versions]
        self.token_ids += turn.token_ids.tolist()
        self.logprobs += turn.logprobs.tolist()
        self.loss_mask += [True] * len(turn.token_ids)

    def add_reward(self, step: Step) -> None:
        self.rewards.append(step.reward)
        self.success = step.success
        self.parts.update(step.parts)

    def add_observation(self, token_ids: Sequence[int]) -> None:
        # The policy did not write these tokens, so they have no log-probability and no loss.
        self.token_ids += token_ids
        self.logprobs += [0.0] * len(token_ids)
        self.loss_mask += [False] * len(token_ids)

    def completion(self, finish_reason: str, outcome: str) -> Completion:
        return Completion(
            text="",
            token_ids=np.array(self.token_ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            loss_mask=np.array(self.loss_mask, np.bool_),
            finish_reason=finish_reason,
            versions=tuple(self.versions),
            episode=Episode(
                turns=len(self.turns),
                answer=self.turns[-1].text if self.turns else "",
                reward=add_up(self.rewards),
                success=self.success,
                outcome=outcome,
                parts=dict(self.parts),
            ),
        )


async def run_episode(
    name: str,
    prompt: Prompt,
    sample_turn: SampleTurn,
    environments: EnvironmentPool,
    encode_observation: EncodeObservation,
    *,
    seed: int,
    group_seed: int,
    max_turns: int,
    max_tokens: int,
) -> Completion:
    """Sample one completion in which the policy and an environment alternate.

    Args:
        name: Name of the episode. The request ids begin with this name.
        prompt: Prompt before the first turn.
        sample_turn: Samples one turn of the policy.
        environments: Processes of the environment.
        encode_observation: Encodes observations as tokens.
        seed: Seed of the first turn. The seeds of later turns are derived from this seed.
        group_seed: Seed of the environment, the same for the whole group.
        max_turns: Most turns of the policy.
        max_tokens: Most tokens of all turns and observations together.

    Returns:
        The episode, without its text. Observations have the loss mask False and log-probabilities of 0. If the
        environment failed, `episode.outcome` has the reason. An observation that leaves no token ends the episode
        and is dropped.
    """
    episode = _Transcript()

    async def alternate() -> str:
        """Run the episode to its end and return the finish reason."""
        state = await environments.reset(prompt, group_seed)
        while True:
            number, tokens = len(episode.turns), [*prompt.token_ids, *episode.token_ids]
            turn_seed = derive_seed(seed, "turn", number) if number else seed
            turn = await sample_turn(f"{name}/{number}", tokens, turn_seed, max_tokens - len(episode.token_ids))
            episode.add_turn(turn)
            if turn.finish_reason == "abort":
                return "abort"
            state, step = await environments.step(state, turn.text)
            episode.add_reward(step)
            if step.done:
                # A last turn that was cut at its limit is as unfinished as any other completion.
                return turn.finish_reason
            observation = encode_observation(step.observation, turn.token_ids.tolist())
            if len(episode.turns) == max_turns or len(episode.token_ids) + len(observation) >= max_tokens:
                return "length"
            episode.add_observation(observation)

    try:
        return episode.completion(await alternate(), outcome="ok")
    except StepError as error:
        return episode.completion("stop", outcome=str(error))

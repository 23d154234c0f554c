"""Data that travels between rollouts, the loop and the learner.

Dimensions used everywhere: G groups (prompts), N completions of a group, B sequences, T packed
tokens, L tokens of one completion, V vocabulary, K of max@K. Entry t of any per-token array
describes token t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem: the text for the policy and the reference for the verifier."""

    prompt_id: str
    """Stable identity of the row in the data. Rows with equal text have different ids."""
    text: str
    token_ids: tuple[int, ...]
    reference: Any
    """Plain JSON values for the verifier. The policy never sees them."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Outcome of a completion of several turns."""

    turns: int
    answer: str
    """Text of the last turn. The verifier scores this text."""
    reward: float
    """Sum of the rewards of the environment's steps."""
    success: bool | None = None
    """`Step.success` of the last step. None: the environment has no opinion."""
    outcome: str = "ok"
    """'ok', or the reason for which the episode failed and is masked: 'timeout', 'died' or 'error: ...'."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers of the steps, summed over the episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion of L tokens, with the end-of-sequence token if the policy sampled one.

    With an environment, a completion is an episode, and the tokens of the observations are included.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[L] log-probability in nats of each token under the sampling distribution. The value is 0 and has no meaning
    where the policy did not sample the token."""
    loss_mask: tuple[bool, ...]
    """[L] True where the policy sampled the token. Only these tokens contribute to the loss."""
    finish_reason: str
    """'stop' (end of sequence or episode), 'length' (cut at the limit of tokens or turns) or 'abort' (no usable
    sample)."""
    min_weight_version: int
    max_weight_version: int
    """First and last version of the weights that sampled tokens of this completion."""
    episode: Episode | None = None
    """None without an environment."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if len(self.logprobs) != n or len(self.loss_mask) != n:
            raise ValueError(
                f"a completion's arrays must have equal lengths: token_ids {n}, "
                f"logprobs {len(self.logprobs)}, loss_mask {len(self.loss_mask)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt with its N completions, sampled independently from one policy."""

    prompt: Prompt
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with a reward and a verdict for each completion."""

    group: Group
    rewards: tuple[float, ...]
    """[N] rewards. The value has no meaning where `valid` is False."""
    successes: tuple[bool, ...]
    """[N] True where the answer is a success, whatever its reward. False where `valid` is False."""
    valid: tuple[bool, ...]
    """[N] True where the sample exists and has a score. An invalid sample is masked, never scored as 0."""
    outcomes: tuple[str, ...]
    """[N] 'ok', 'too_long' (missing, or the penalty of `length`), 'truncated' (reward 0 or missing, by
    `algorithm.truncated`), or the reason for a missing reward: 'timeout', 'undecided: ...', 'error: ...', 'died' or
    'abort'."""
    reward_parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """[N] values of each named part of the reward, for the log."""

    def __post_init__(self) -> None:
        n = len(self.group.completions)
        lengths = {name: len(getattr(self, name)) for name in ("rewards", "successes", "valid", "outcomes")}
        lengths.update({f"reward_parts[{k}]": len(v) for k, v in self.reward_parts.items()})
        wrong = {k: v for k, v in lengths.items() if v != n}
        if wrong:
            raise ValueError(f"group {self.group.prompt.prompt_id} has {n} completions but {wrong}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """Input of one learner update: the groups to learn from, and the denominators of the loss."""

    groups: tuple[ScoredGroup, ...]
    signal: tuple[tuple[bool, ...], ...]
    """[G][N] True where the advantage of a sample is not zero."""
    sampled_sequences: int
    """Number of valid sequences sampled for this step, with those of dropped groups."""
    sampled_tokens: int
    """Number of loss tokens of these sequences. A dropped group has zero advantages and adds nothing to the sum of the
    loss, so with both denominators a dropped group changes no gradient."""
    step: int
    k: tuple[int, ...]
    """[G] K of each group, fixed before the group was sampled."""
    mix_weight: float = 0.0
    """Weight of `algorithm.mix_with` in this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Metrics of one learner update, with the seconds of its stages."""

    metrics: Mapping[str, float]


WeightsState = tuple[int | None, list[dict[str, int]]]
"""Version of an engine's weights, and for each of its processes the checksum of each tensor received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """Identity of published weights, for the comparison with the weights of each engine."""

    version: int
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    digests: tuple[int, ...]
    """Checksum of each tensor, see `maxpo.weights.checksum`."""
    received: Mapping[str, WeightsState] = field(default_factory=dict[str, WeightsState])
    """Answer of each engine, by its name."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """An engine that receives weights."""

    name: str
    """Name of the engine in messages."""
    actor: Any
    """Ray handle of the engine's actor, with the methods of a weight-transfer engine."""
    workers: int
    """Number of the engine's processes that receive weights."""

"""The data that travels between rollouts, the loop and the learner.

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
    """One problem: what the policy reads, and what the verifier compares with."""

    prompt_id: str
    """Stable identity of the row it came from; rows with equal text keep different ids."""
    text: str
    token_ids: tuple[int, ...]
    reference: Any
    """What the verifier needs, as plain JSON values; never shown to the policy."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """How a completion of several turns went."""

    turns: int
    answer: str
    """Text of the last turn, which the verifier judges."""
    reward: float
    """Sum over the steps of the environment."""
    outcome: str = "ok"
    """Or why the environment ended it: 'timeout', 'died', 'error: ...'; it is masked then."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named numbers of its steps, added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion of L tokens, the end-of-sequence token included when it was sampled.

    With an environment it is a whole episode, and its observations are among the tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[L] log-probability in nats of each token under the distribution it was sampled from; 0, which says nothing,
    where the policy did not sample it."""
    loss_mask: tuple[bool, ...]
    """[L] True where the policy produced the token, so that it contributes to the loss."""
    finish_reason: str
    """'stop' (end of sequence, or of the episode), 'length' (cut at the limit of tokens or of turns) or 'abort' (no
    usable sample)."""
    min_weight_version: int
    max_weight_version: int
    """First and last version of the weights that produced tokens of this completion."""
    episode: Episode | None = None
    """None: without an environment."""

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
    """A group with a reward for each completion."""

    group: Group
    rewards: tuple[float, ...]
    """[N] rewards; the value where `valid` is False means nothing."""
    valid: tuple[bool, ...]
    """[N] True where the sample exists and was judged. An invalid sample is masked, never 0."""
    outcomes: tuple[str, ...]
    """[N] 'ok', 'too_long' (reward 0), or why there is no reward: 'timeout', 'error: ...', 'died', 'abort'."""
    reward_parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """Named parts of the reward, [N] each, for the log."""

    def __post_init__(self) -> None:
        n = len(self.group.completions)
        lengths = {"rewards": len(self.rewards), "valid": len(self.valid), "outcomes": len(self.outcomes)}
        lengths.update({f"reward_parts[{k}]": len(v) for k, v in self.reward_parts.items()})
        wrong = {k: v for k, v in lengths.items() if v != n}
        if wrong:
            raise ValueError(f"group {self.group.prompt.prompt_id} has {n} completions but {wrong}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What the learner gets for one step: the groups to learn from, and what was sampled in all."""

    groups: tuple[ScoredGroup, ...]
    signal: tuple[tuple[bool, ...], ...]
    """[G][N] True where the advantage of a sample is not zero."""
    sampled_sequences: int
    """Valid sequences sampled for this step, those of dropped zero-signal groups included."""
    sampled_tokens: int
    """Loss tokens of the same sequences. Both are the denominators of the loss: a group whose
    advantages are all zero adds nothing to the sum, so leaving it out changes no gradient."""
    step: int
    k: tuple[int, ...]
    """K of each group, decided before the group was sampled."""
    mix_weight: float = 0.0
    """Weight of `algorithm.mix_with` in this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one learner update reports: metrics by name, the seconds of its stages among them."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """The identity of a set of published weights, to be compared with what each engine received."""

    version: int
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    digests: tuple[int, ...]
    """One checksum per tensor, see `maxpo.weights.checksum.tensor_digest`."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """An engine that wants weights."""

    name: str
    """How messages call it."""
    actor: Any
    """Its actor, with the methods of a weight-transfer engine."""
    workers: int
    """How many of its processes receive."""

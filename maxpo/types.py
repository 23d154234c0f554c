"""Data that travels between rollouts, the loop and the learner.

Dimensions used everywhere: G groups (prompts), N completions of a group, B sequences, T packed
tokens, L tokens of one completion, V vocabulary, K of max@K. Entry t of any per-token array
describes token t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled completion of L tokens, with the end-of-sequence token if the policy sampled one.

    With an environment, a completion is an episode, and the tokens of the observations are included. Arrays that came
    from another process are read-only.
    """

    text: str
    token_ids: NDArray[np.int32]
    """[L] Tokens."""
    logprobs: NDArray[np.float32]
    """[L] Log-probability in nats of each token under the sampling distribution. The value is 0 and has no meaning
    where the policy did not sample the token."""
    finish_reason: str
    """'stop' (end of sequence or episode), 'length' (cut at the limit of tokens or turns) or 'abort' (no usable
    sample)."""
    versions: tuple[tuple[int, int], ...]
    """Spans of tokens that were sampled by one version of the weights each: (version, index of its first token). Empty
    without tokens."""
    loss_mask: NDArray[np.bool_] | None = None
    """[L] True where the policy sampled the token. Only these tokens contribute to the loss. None: all of them."""
    episode: Episode | None = None
    """None without an environment."""

    def __post_init__(self) -> None:
        arrays: dict[str, tuple[NDArray[Any], type]] = {
            "token_ids": (self.token_ids, np.int32),
            "logprobs": (self.logprobs, np.float32),
        }
        if self.loss_mask is not None:
            arrays["loss_mask"] = (self.loss_mask, np.bool_)
        for name, (array, dtype) in arrays.items():
            if array.dtype != dtype or array.shape != self.token_ids.shape or array.ndim != 1:
                raise ValueError(
                    f"a completion's {name} must be an array of {np.dtype(dtype)} of the length of token_ids, and has "
                    f"the type {array.dtype} and the shape {array.shape}"
                )

    def __eq__(self, other: object) -> bool:
        """Compare every field. Two arrays are equal if all their values are."""
        if not isinstance(other, Completion):
            return NotImplemented
        return all(_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that contribute to the loss."""
        return len(self.token_ids) if self.loss_mask is None else int(np.count_nonzero(self.loss_mask))

    def loss_tokens_by_lag(self, version: int) -> dict[int, int]:
        """Return the number of loss tokens for each age: `version` minus the version that sampled the token."""
        counts: dict[int, int] = {}
        ends = [*(start for _, start in self.versions[1:]), len(self.token_ids)]
        for (sampled, start), end in zip(self.versions, ends, strict=True):
            mask = self.loss_mask
            tokens = end - start if mask is None else int(np.count_nonzero(mask[start:end]))
            counts[version - sampled] = counts.get(version - sampled, 0) + tokens
        return {lag: tokens for lag, tokens in counts.items() if tokens}

    @property
    def min_weight_version(self) -> int:
        """First version of the weights that sampled tokens of this completion. -1 without tokens."""
        return min((version for version, _ in self.versions), default=-1)

    @property
    def max_weight_version(self) -> int:
        """Last version of the weights that sampled tokens of this completion. -1 without tokens."""
        return max((version for version, _ in self.versions), default=-1)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(cast(Any, a), cast(Any, b))
    return a == b


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


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A prompt that was admitted to sampling, and what became of it."""

    number: int
    """Position in the order of admission, over the whole run, which is that of the prompt stream."""
    prompt: Prompt
    k: int
    """K of the group, fixed before the group is sampled."""
    draw: str
    """Name of the draw. Equal names, prompts and weights give equal samples."""
    step: int
    """Training step in which the prompt was admitted."""
    group: Group | None = None
    """The sampled group."""
    sampled_at: float = 0.0
    """Time at which the group was complete, on the clock of `time.monotonic`."""
    scored: ScoredGroup | None = None
    """The group with its rewards."""
    finished: int = -1
    """Position in the order in which groups were scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The numbers of a step that mix two estimators. They do not depend on the rewards of the step."""

    weight: float = 0.0
    """Weight of `algorithm.mix_with`."""
    lam: float | None = None
    """Weight of L2O in the estimator `interpolated`. None: (n - K) / (n - 1)."""


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
    mix: Mix = Mix()
    """How the estimators were mixed."""
    entropy_coef: float | None = None
    """Weight of the entropy bonus in this step. None: `algorithm.entropy_coef`."""
    version: int = 0
    """Version of the weights at the start of this step."""


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

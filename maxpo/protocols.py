"""What the loop needs of rollouts and learner, as Protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from maxpo.types import Group, Prompt, Receiver, ScoredGroup, StepBatch, StepResult, WeightManifest


class Sampler(Protocol):
    """Samples groups and scores them."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = ...,
        *,
        greedy: bool = False,
    ) -> list[Group]:
        """One whole group for each prompt, in order; `draw` names the sampling, equal draws sample equally.
        `greedy`: nothing is drawn, the likeliest token is taken each time."""
        ...

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion."""
        ...

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """What every completion answers, None where it does not; None for a group whose verifier does not say."""
        ...


class Rollouts(Sampler, Protocol):
    """Samples groups and scores them, with engines that want weights."""

    def rest(self) -> None:
        """Nothing is sampled until the next `receivers`; the learner may have the memory that is shared."""

    def receivers(self) -> list[Receiver]:
        """The engines that want weights."""
        ...

    def confirm(self, manifest: WeightManifest) -> None:
        """Raise unless every engine holds exactly these weights."""
        ...

    def replace_lost(self) -> bool:
        """After a failed publish: replace engines that died; whether there are any, so that it can be repeated.

        Raises:
            LearnerLostError: it was an engine's death, but the learner cannot get over it either.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the engines for the log."""
        ...


class Learner(Protocol):
    """Turns scored groups into new weights."""

    def update(self, batch: StepBatch) -> StepResult:
        """One training step."""
        ...

    def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
        """Send the weights to the engines under the next version; `again`: under the version of the last call."""
        ...

    def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
        """Copy everything that `update` changes, and the policy where it is wanted; the function writes it there."""
        ...

    def load(self, folder: Path, version: int) -> None:
        """Go on from what `save` wrote; the next `publish` sends it as `version`."""
        ...

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        ...

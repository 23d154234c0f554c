"""Protocols of the two sides of the training loop: rollouts and learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from maxpo.batches.samples import Sample
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, StepBatch, StepResult, Ticket, WeightManifest


class Sampler(Protocol):
    """Source of scored groups."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = ...,
        *,
        greedy: bool = False,
    ) -> list[Group]:
        """Sample one complete group for each prompt; return the groups in the order of the prompts.

        Args:
            prompts: Prompts.
            group_size: Number of completions of each group, N.
            draw: Name of the draw. Equal names, prompts and weights give equal samples.
            on_group: Function that gets each group as soon as the group is complete.
            greedy: Take the most likely token each time instead of sampling.
        """
        ...

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Score every completion; return the groups in the same order."""
        ...

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """Return the answer of every completion, for the majority vote.

        A completion without an answer has None. A group has None if its verifier does not extract answers.
        """
        ...


class Rollouts(Sampler, Protocol):
    """Source of scored groups whose engines receive weights."""

    def submit(self, ticket: Ticket) -> None:
        """Sample and score a prompt when there is room, in the order of the numbers. The ticket gets the result."""
        ...

    def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
        """Let sampling and scoring go on until the condition holds. It is asked first, and after each event.

        Args:
            until: The condition.
            learner_busy: The learner cannot send weights meanwhile, so engines that have none wait.
        """
        ...

    def idle(self) -> bool:
        """Return True if nothing goes on: all that was submitted is finished, or waits for engines with weights."""
        ...

    def wake(self) -> None:
        """Make `serve` ask its condition again. Any thread may call this."""
        ...

    def abandon(self) -> None:
        """Forget everything that was submitted. Engines stop working on it."""
        ...

    def rest(self) -> None:
        """Free shared memory for the learner: no sampling follows until the next `receivers`."""

    def receivers(self) -> list[Receiver]:
        """Return the engines that receive weights."""
        ...

    def confirm(self, manifest: WeightManifest) -> str | None:
        """Raise unless every engine has exactly these weights, and computes with them what the learner computes.

        Returns a sentence on engines that were compared with the learner for the first time.
        """
        ...

    def replace_lost(self) -> bool:
        """Replace the engines that died in a failed publish; return True if any engine died.

        Raises:
            LearnerLostError: An engine died, and the learner cannot continue without a restart.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Return metrics of the engines."""
        ...


class Update(Protocol):
    """A training step that was begun."""

    def done(self) -> bool:
        """Return True if `result` does not wait: the step has ended, well or not, or its time is over."""
        ...

    def result(self) -> StepResult:
        """Return the metrics of the step, or raise its error."""
        ...


class Learner(Protocol):
    """Trainer of the policy."""

    def begin_update(self, batch: StepBatch, wake: Callable[[], None]) -> Update:
        """Begin one training step. `wake` is called, in any thread, when it ends."""
        ...

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the policy's log-probability of each token of each sample in nats, 0 outside the loss mask."""
        ...

    def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
        """Send the weights to the engines under the next version; with `again` under the version of the last call."""
        ...

    def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
        """Copy the training state, and the policy if `policy` is True; return a function that writes both."""
        ...

    def load(self, folder: Path, version: int) -> None:
        """Load a training state that `save` wrote; the next `publish` sends the weights as `version`."""
        ...

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        ...

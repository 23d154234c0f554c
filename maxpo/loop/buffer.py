"""The groups between sampling and learning: which prompts are sampled now, and which groups make the next batch.

With S = `pipeline.max_staleness`, A = `pipeline.lookahead` <= S, and G groups a step:

- `admit` hands prompts to sampling until A G groups beyond what the step still needs are on their way.
- `take` waits for the groups that have to go now, whatever else is ready, so that none gets older than S steps. The
  rest of the batch are the groups that were finished first.

A group that is admitted in step s is taken in a step <= s + S: each step takes at least G groups, and at its begin at
most (j + 1) G groups have to go within j steps, for every j. Taking what has to go keeps this true for the groups that
are there, and those admitted now have to go S steps later, when they are at most (A + 1) G <= (S + 1) G in all.

With A = S batches are in the order of admission. With S = 0 nothing is ever ahead: sampling and learning alternate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from maxpo.config import AlgorithmConfig, Config
from maxpo.data.order import PromptStream
from maxpo.estimators.k_schedule import PassRates, adapted_k, scheduled_k
from maxpo.protocols import Rollouts
from maxpo.types import Prompt, Ticket

Count = Annotated[int, Field(ge=0)]


OnProgress = Callable[[Sequence[Ticket], Sequence[Ticket]], None]
"""Gets the groups that have to go now, and the others that are admitted."""


class PendingGroup(TypedDict):
    """A group that was admitted and not taken, in a checkpoint. Its completions are sampled again."""

    number: Count
    k: Annotated[int, Field(ge=1)]
    draw: str


class GroupBuffer:
    """Admission of prompts, and choice of the groups of each step."""

    def __init__(self, config: Config, stream: PromptStream, rates: PassRates, rollouts: Rollouts) -> None:
        """Start with nothing admitted.

        Args:
            config: Settings.
            stream: Training prompts. Its position is the number of admitted prompts.
            rates: Pass rates for the adaptive K.
            rollouts: Gets the admitted prompts.
        """
        self._algorithm, self._steps = config.algorithm, config.run.steps
        self._staleness, self._ahead = config.pipeline.max_staleness, config.pipeline.ahead
        self._stream, self._rates, self._rollouts = stream, rates, rollouts
        self._again: deque[PendingGroup] = deque()
        """Groups of a checkpoint that are not admitted again yet."""
        self.pending: list[Ticket] = []
        """Admitted groups that are not taken yet, in the order of their numbers."""

    @property
    def taken(self) -> int:
        """Number of groups taken so far, over the whole run."""
        return self._stream.cursor - len(self.pending) - len(self._again)

    def admit(self, step: int, refills: int, missing: int) -> None:
        """Hand over as many prompts as there is room for. K of each is decided first.

        Args:
            step: The current step.
            refills: Number of earlier rounds of this step.
            missing: Groups that this round needs.
        """
        each = self._algorithm.prompts_per_step
        # Nothing is sampled that no step will need.
        room = min(self._ahead, self._steps - step) * each + missing - len(self.pending)
        for _ in range(room):
            ticket = self._admit_again(step) if self._again else self._admit_next(step, refills)
            self.pending.append(ticket)
            self._rollouts.submit(ticket)

    def _admit_again(self, step: int) -> Ticket:
        """Return a ticket for a group of the checkpoint: the same prompt, seeds and K, with the weights of now."""
        kept = self._again.popleft()
        return Ticket(prompt=self._stream.at(kept["number"]), step=step, **kept)

    def _admit_next(self, step: int, refills: int) -> Ticket:
        """Return a ticket for the next prompt."""
        number = self._stream.cursor
        (prompt,) = self._stream.next(1)
        # A schedule of K follows the step in which the group will be trained, if nothing is refilled.
        planned = min(step + len(self.pending) // self._algorithm.prompts_per_step, self._steps)
        return Ticket(
            number=number,
            prompt=prompt,
            k=k_of(self._algorithm, self._rates, prompt, planned, self._steps),
            draw=f"group{number}" if self._staleness else f"step{step}.{refills}",
            step=step,
        )

    def take(self, step: int, missing: int, on_progress: OnProgress) -> list[Ticket]:
        """Return `missing` scored groups for this step, in the order of admission. Sampling goes on meanwhile.

        Args:
            step: The current step.
            missing: Groups to return. At least as many are admitted.
            on_progress: Called after each event.
        """
        must = self.pending[: self._must(step, missing)]
        others = self.pending[len(must) :]

        def enough() -> bool:
            on_progress(must, others)
            done = sum(ticket.scored is not None for ticket in others)
            return all(ticket.scored for ticket in must) and done >= missing - len(must)

        self._rollouts.serve(enough)
        first = sorted((ticket for ticket in others if ticket.scored), key=lambda ticket: ticket.finished)
        chosen = {ticket.number for ticket in (*must, *first[: missing - len(must)])}
        taken = [ticket for ticket in self.pending if ticket.number in chosen]
        self.pending = [ticket for ticket in self.pending if ticket.number not in chosen]
        return taken

    def _must(self, step: int, missing: int) -> int:
        """Return how many of the oldest groups have to be taken now."""
        if self._ahead == self._staleness:
            return missing
        each, must = self._algorithm.prompts_per_step, 0
        for later in range(self._staleness + 1):
            due = sum(ticket.step + self._staleness <= step + later for ticket in self.pending)
            must = max(must, due - later * each)
        return min(must, missing)

    def state_dict(self) -> list[PendingGroup]:
        """Return the groups that are admitted and not taken, as plain JSON."""
        pending = [PendingGroup(number=t.number, k=t.k, draw=t.draw) for t in self.pending]
        return [*pending, *self._again]

    def load_state_dict(self, state: Sequence[PendingGroup]) -> None:
        """Admit these groups first, before any new prompt, as soon as there is room.

        The settings may have changed: with a smaller `max_staleness` the groups wait here, not as completions.
        """
        self._again = deque(state)


def k_of(algorithm: AlgorithmConfig, rates: PassRates, prompt: Prompt, step: int, total_steps: int) -> int:
    """Return the K of a prompt. It is fixed before the prompt's group is sampled."""
    if algorithm.k_schedule == "adaptive":
        return adapted_k(rates(prompt.prompt_id), *algorithm.k_values)
    return scheduled_k(algorithm, step, total_steps)

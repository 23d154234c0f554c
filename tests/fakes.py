"""Stand-ins for engines and learner: no model, no processes, but the same Protocols and the same data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maxpo.batches.samples import Sample
from maxpo.rewards.base import succeeds
from maxpo.seeds import derive_seed
from maxpo.types import (
    Completion,
    Group,
    Prompt,
    Receiver,
    ScoredGroup,
    StepBatch,
    StepResult,
    Ticket,
    WeightManifest,
    WeightsState,
)


def completion(
    text: str = "x",
    *,
    tokens: int = 3,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
    loss_mask: Sequence[bool] | None = None,
    finish_reason: str = "stop",
    version: int = 0,
) -> Completion:
    ids = [ord(c) % 50 for c in (text * tokens)[:tokens]] if token_ids is None else token_ids
    return Completion(
        text=text,
        token_ids=np.array(ids, np.int32),
        logprobs=np.full(len(ids), -1.0, np.float32) if logprobs is None else np.array(logprobs, np.float32),
        loss_mask=None if loss_mask is None else np.array(loss_mask, np.bool_),
        finish_reason=finish_reason,
        versions=((version, 0),) if len(ids) else (),
    )


def sample(
    token_ids: Sequence[int],
    *,
    prompt: int = 1,
    logprobs: Sequence[float] | None = None,
    group: int = 0,
    index: int = 0,
) -> Sample:
    """A sample whose first `prompt` tokens are the prompt."""
    return Sample(
        group=group,
        index=index,
        token_ids=np.array(token_ids, np.int32),
        loss_mask=np.arange(len(token_ids)) >= prompt,
        rollout_logprobs=np.array([0.0] * len(token_ids) if logprobs is None else logprobs, np.float32),
    )


def prompt(name: str = "p", token_ids: tuple[int, ...] = (1, 2), reference: Any = "yes") -> Prompt:
    return Prompt(prompt_id=name, text=name, token_ids=token_ids, reference=reference, source="fake")


def scored(rewards: Sequence[float], valid: Sequence[bool] | None = None, **kwargs: Any) -> ScoredGroup:
    completions = kwargs.pop("completions", None) or tuple(completion(f"c{i}") for i in range(len(rewards)))
    valid = tuple(valid) if valid is not None else (True,) * len(rewards)
    successes = kwargs.pop("successes", None) or tuple(succeeds(r) and v for r, v in zip(rewards, valid, strict=True))
    return ScoredGroup(
        group=Group(prompt=kwargs.pop("prompt", prompt()), completions=completions),
        rewards=tuple(rewards),
        successes=tuple(successes),
        valid=valid,
        outcomes=tuple("ok" if v else "timeout" for v in valid),
        **kwargs,
    )


class FakeRollouts:
    """Answers 'yes' with probability `skill`, from the same kind of seed as the real pool."""

    def __init__(self, skill: Callable[[Prompt], float] = lambda prompt: 0.5, group_size: int = 8) -> None:
        self.skill, self.group_size = skill, group_size
        self.submitted: list[Ticket] = []
        self.finished = 0
        self.version: int | None = None
        self.draws: list[tuple[str, list[str], int]] = []
        self.confirmed: list[int] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = lambda group: None,
        *,
        greedy: bool = False,
    ) -> list[Group]:
        if self.version is None:
            raise RuntimeError("generation refused: the engine has no weight version yet")
        self.draws.append((draw, [p.prompt_id for p in prompts], group_size))
        groups: list[Group] = []
        for p in prompts:
            rng = random.Random(derive_seed(draw, p.prompt_id))
            draws = [0.5 if greedy else rng.random() for _ in range(group_size)]
            answers = ["yes" if drawn < self.skill(p) else "no" for drawn in draws]
            groups.append(Group(prompt=p, completions=tuple(completion(a, version=self.version) for a in answers)))
            on_group(groups[-1])
        return groups

    def submit(self, ticket: Ticket) -> None:
        self.submitted.append(ticket)

    def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
        """One event is one draw: all groups of it that were submitted, in order."""
        while not until():
            assert self.submitted, "nothing is left to wait for"
            now = [t for t in self.submitted if t.draw == self.submitted[0].draw]
            self.submitted = [t for t in self.submitted if t.draw != now[0].draw]
            groups = self.generate([t.prompt for t in now], self.group_size, now[0].draw)
            for ticket, group, scored in zip(now, groups, self.score(groups), strict=True):
                ticket.group, ticket.scored, ticket.finished = group, scored, self.finished
                self.finished += 1

    def idle(self) -> bool:
        return not self.submitted

    def wake(self) -> None:
        pass

    def abandon(self) -> None:
        self.submitted = []

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        return [
            scored(
                [float(c.text == g.prompt.reference) for c in g.completions], prompt=g.prompt, completions=g.completions
            )
            for g in groups
        ]

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        return [tuple(c.text for c in g.group.completions) for g in groups]

    def receivers(self) -> list[Receiver]:
        return [Receiver(name="fake", actor=self, workers=1)]

    def confirm(self, manifest: WeightManifest) -> str | None:
        self.confirmed.append(manifest.version)
        return None

    def rest(self) -> None:
        pass

    def replace_lost(self) -> bool:
        return False

    def metrics(self) -> dict[str, float]:
        return {}


class FakeUpdate:
    """An update that ends at once."""

    def __init__(self, learner: FakeLearner, batch: StepBatch) -> None:
        self._learner, self._batch = learner, batch

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._learner.update(self._batch)


class FakeLearner:
    """Records what it was given."""

    def __init__(self) -> None:
        self.batches: list[StepBatch] = []
        self.off = 0.0
        """Difference of this learner's log-probabilities from those of the sampler."""
        self.version = -1
        self.weights = 0
        """Stands for the weights: depends on every batch so far."""

    def begin_update(self, batch: StepBatch, wake: Callable[[], None]) -> FakeUpdate:
        return FakeUpdate(self, batch)

    def update(self, batch: StepBatch) -> StepResult:
        self.batches.append(batch)
        seen = [(g.group.prompt.prompt_id, g.rewards, g.group.completions) for g in batch.groups]
        self.weights = derive_seed(self.weights, batch.step, batch.k, batch.mix.weight, seen)
        metrics = {"train/tokens": 1.0, "time/update_s": 1.0, "train/grad_norm": float(self.weights % 1000)}
        return StepResult(metrics=metrics | {"train/refused_steps": 0.0})

    def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
        weights = self.weights  # the learner may go on before it is written

        def write() -> None:
            (folder / "learner").mkdir()
            (folder / "learner" / "learner.json").write_text(json.dumps({"weights": weights}))
            if policy:
                (folder / "policy").mkdir()
                (folder / "policy" / "model.txt").write_text(str(weights))

        return write

    def load(self, folder: Path, version: int) -> None:
        self.weights = json.loads((folder / "learner.json").read_text())["weights"]
        self.version = version - 1

    def export(self, target: Path) -> None:
        target.mkdir()
        (target / "model.txt").write_text(str(self.weights))

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        return [[logprob + self.off for logprob in sample.rollout_logprobs.tolist()] for sample in samples]

    def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
        self.version += not again
        for receiver in receivers:
            if isinstance(receiver.actor, FakeRollouts):
                receiver.actor.version = self.version
        received: dict[str, WeightsState] = {receiver.name: (self.version, [{}]) for receiver in receivers}
        return WeightManifest(version=self.version, names=(), dtypes=(), shapes=(), digests=(), received=received)

"""Mixtures of sources, and the order in which prompts are drawn."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from typing import Any, cast

from maxpo.data.rows import Rows
from maxpo.errors import DataError
from maxpo.types import Prompt


@dataclass(frozen=True)
class Mixture(Sequence[Prompt]):
    """The prompts of several sources, one source after the other, and how often each is drawn."""

    parts: Sequence[Sequence[Prompt]]
    names: Sequence[str]
    weights: Sequence[int]
    """Draws of each part out of their sum."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[cast("int", index)]
        for part in self.parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise AssertionError("unreachable")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all prompts in their order, with their tokens, and of the weights where there are several sources."""
        found = [part.fingerprint if isinstance(part, Rows) else _fingerprint(part) for part in self.parts]
        if len(found) == 1:
            return found[0]
        return hashlib.sha256(json.dumps([found, list(self.weights)]).encode()).hexdigest()


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.prompt_id, prompt.token_ids]).encode())
    return digest.hexdigest()


def integer_weights(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The weights of the sources in their lowest terms, as whole numbers, so that nothing is ever rounded."""
    exact = [Fraction(str(entry.get("weight", 1))) for entry in entries]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // gcd(*whole) for weight in whole]


class WeightedRoundRobin:
    """Whose turn it is among sources with weights: always the one that is furthest behind its share.

    No source is ever a whole draw ahead of its share, and after as many draws as the weights sum up to, each has had
    exactly its weight of them; so a position is found again in less than so many steps.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Start at the first draw."""
        self._weights, self._sum = weights, sum(weights)
        self.drawn = [0] * len(weights)
        """Draws of each source so far."""

    def seek(self, cursor: int) -> None:
        """Go to the position after `cursor` draws."""
        rounds, rest = divmod(cursor, self._sum)
        self.drawn = [rounds * weight for weight in self._weights]
        for _ in range(rest):
            self.next()

    def next(self) -> int:
        """The source of the next draw."""
        if len(self.drawn) == 1:
            chosen = 0
        else:
            after = sum(self.drawn) + 1
            behind = [weight * after - self._sum * n for weight, n in zip(self._weights, self.drawn, strict=True)]
            chosen = behind.index(max(behind))
        self.drawn[chosen] += 1
        return chosen


class PromptStream:
    """Prompts in an order that a seed and an integer determine: a new permutation for each pass over a source."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Start at the beginning of the first pass; of a `Mixture` the sources take turns."""
        self._prompts = prompts if isinstance(prompts, Mixture) else Mixture([prompts], [""], [1])
        self._seed = seed
        self._cursor = 0
        self._turns = WeightedRoundRobin(self._prompts.weights)
        self._orders: dict[int, tuple[int, array[int]]] = {}

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts; passes follow one another without a gap."""
        taken: list[Prompt] = []
        for _ in range(count):
            source = self._turns.next()
            part = self._prompts.parts[source]
            epoch, position = divmod(self._turns.drawn[source] - 1, len(part))
            taken.append(part[self._permutation(source, epoch)[position]])
            self._cursor += 1
        return taken

    @property
    def epoch(self) -> float:
        """Draws so far for each prompt there is; of one source its passes."""
        return self._cursor / len(self._prompts)

    def state_dict(self) -> dict[str, Any]:
        """The position, and which prompts it is in, as plain JSON."""
        return {"cursor": self._cursor, "seed": self._seed, "prompts": self._prompts.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Raises:
            DataError: the position belongs to another seed, or to other prompts.
        """
        if state["seed"] != self._seed:
            raise DataError(f"the data position was saved with run.seed = {state['seed']}, this run has {self._seed}")
        if state["prompts"] != self._prompts.fingerprint:
            raise DataError(
                "the training prompts are not those of the checkpoint, so its position in them means nothing: the "
                "rows (data.train_file, data.train with its weights, or data.task with its settings), a setting of the "
                "section data, or the tokenizer in model.path have changed"
            )
        self._cursor = state["cursor"]
        self._turns.seek(self._cursor)

    def _permutation(self, source: int, epoch: int) -> array[int]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            part = self._prompts.parts[source]
            order = array("Q", range(len(part)))
            # Of one source the name is the one it has always had, so that old checkpoints go on.
            name = f"{self._seed}/{epoch}" + (f"/{source}" if len(self._prompts.parts) > 1 else "")
            random.Random(name).shuffle(order)
            known = self._orders[source] = epoch, order
        return known[1]

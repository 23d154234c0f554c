"""Mixtures of sources, and the order of the draws."""

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
from typing import Any, overload

from maxpo.data.rows import Rows
from maxpo.errors import DataError
from maxpo.types import Prompt


@dataclass(frozen=True)
class Mixture(Sequence[Prompt]):
    """The prompts of several sources, one source after the other, and the weight of each source."""

    parts: Sequence[Sequence[Prompt]]
    names: Sequence[str]
    weights: Sequence[int]
    """Number of draws from each part, out of the sum of all weights."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        for part in self.parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise AssertionError("unreachable")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all prompts in order, with their tokens, and of the weights if there are several sources."""
        hashes = [part.fingerprint if isinstance(part, Rows) else _fingerprint(part) for part in self.parts]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256(json.dumps([hashes, list(self.weights)]).encode()).hexdigest()


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.prompt_id, prompt.token_ids]).encode())
    return digest.hexdigest()


def integer_weights(entries: Sequence[Mapping[str, object]]) -> list[int]:
    """Return the weights of the sources as integers in lowest terms, so that nothing is rounded."""
    exact = [Fraction(str(entry.get("weight", 1))) for entry in entries]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // gcd(*whole) for weight in whole]


class WeightedRoundRobin:
    """Chooses the source of each draw: the one that is furthest behind its share.

    No source is ever one draw ahead of its share. After as many draws as the sum of the weights, each source has had
    exactly its weight of them. So `seek` needs fewer steps than that sum.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Start at the first draw."""
        self._weights, self._sum = weights, sum(weights)
        self.drawn = [0] * len(weights)
        """Number of draws from each source so far."""

    def seek(self, cursor: int) -> None:
        """Go to the position after `cursor` draws."""
        rounds, rest = divmod(cursor, self._sum)
        self.drawn = [rounds * weight for weight in self._weights]
        for _ in range(rest):
            self.next()

    def next(self) -> int:
        """Return the source of the next draw."""
        if len(self.drawn) == 1:
            chosen = 0
        else:
            after = sum(self.drawn) + 1
            behind = [weight * after - self._sum * n for weight, n in zip(self._weights, self.drawn, strict=True)]
            chosen = behind.index(max(behind))
        self.drawn[chosen] += 1
        return chosen


class PromptStream:
    """Prompts in an order that depends on a seed and a position only: a new permutation for each pass over a source."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Start at the beginning of the first pass. The sources of a `Mixture` alternate by weight."""
        self._prompts = prompts if isinstance(prompts, Mixture) else Mixture([prompts], [""], [1])
        self._seed = seed
        self.cursor = 0
        """Number of draws so far."""
        self._rotation = WeightedRoundRobin(self._prompts.weights)
        self._orders: dict[int, tuple[int, array[int]]] = {}

    def next(self, count: int) -> list[Prompt]:
        """Return the next `count` prompts. Passes follow one another without a gap."""
        taken: list[Prompt] = []
        for _ in range(count):
            taken.append(self._draw(self._rotation))
            self.cursor += 1
        return taken

    def at(self, number: int) -> Prompt:
        """Return the prompt of one draw, counted from 0. The position stays."""
        rotation = WeightedRoundRobin(self._prompts.weights)
        rotation.seek(number)
        return self._draw(rotation)

    def epochs(self, draws: int) -> float:
        """Return a number of draws divided by the number of prompts. With one source: number of passes."""
        return draws / len(self._prompts)

    def _draw(self, rotation: WeightedRoundRobin) -> Prompt:
        source = rotation.next()
        part = self._prompts.parts[source]
        epoch, position = divmod(rotation.drawn[source] - 1, len(part))
        return part[self._permutation(source, epoch)[position]]

    def state_dict(self) -> dict[str, str | int]:
        """Return the position, and the identity of the prompts, as plain JSON."""
        return {"cursor": self.cursor, "seed": self._seed, "prompts": self._prompts.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Raises:
            DataError: The position belongs to another seed, or to other prompts.
        """
        if state["seed"] != self._seed:
            raise DataError(f"the data position was saved with run.seed = {state['seed']}, this run has {self._seed}")
        if state["prompts"] != self._prompts.fingerprint:
            raise DataError(
                "the training prompts are not those of the checkpoint, so its position in them means nothing: the "
                "rows (data.train_file, data.train with its weights, or data.task with its settings), a setting of the "
                "section data, or the tokenizer in model.path have changed"
            )
        self.cursor = state["cursor"]
        self._rotation.seek(self.cursor)

    def _permutation(self, source: int, epoch: int) -> array[int]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            part = self._prompts.parts[source]
            order = array("Q", range(len(part)))
            # With one source the name is that of old versions, so that their checkpoints can be resumed.
            name = f"{self._seed}/{epoch}" + (f"/{source}" if len(self._prompts.parts) > 1 else "")
            random.Random(name).shuffle(order)
            known = self._orders[source] = epoch, order
        return known[1]

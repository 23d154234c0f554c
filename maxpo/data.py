"""Prompts: where they come from, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from pathlib import Path
from typing import Any, cast

from maxpo.config import DataConfig
from maxpo.errors import DataError
from maxpo.rows import Chat, Encode, Reader, Rows, columns, said
from maxpo.tables import open_table
from maxpo.tasks.registry import TASKS
from maxpo.types import Prompt

__all__ = ["DataError", "Encode", "Mixture", "PromptStream", "load_prompts"]


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


def load_prompts(
    config: DataConfig,
    *,
    seed: int,
    eval_size: int,
    encode: Encode,
    chat: Chat | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Mixture, list[Prompt]]:
    """Training and evaluation prompts. Rows of files are checked here, and made into prompts when they are drawn.

    Args:
        config: the section `data`.
        seed: of procedural tasks.
        eval_size: evaluation prompts wanted; of a file the first ones are taken. 0: none.
        encode: the policy's tokenizer.
        chat: its chat template; None: it has none.
        say: told what was found in each source, and what of it is left out.

    Raises:
        DataError: bad rows, a prompt over `data.max_prompt_tokens`, or too few evaluation rows.
    """
    reader = Reader(
        encode=encode,
        **({} if chat is None else {"chat": chat}),
        as_chat=config.chat,
        system_prompt=config.system_prompt,
        max_tokens=config.max_prompt_tokens,
        drop_overlong=config.overlong == "drop",
        max_bad_rows=config.max_bad_rows,
    )
    own_task = [] if config.task is None else [{"task": config.task, "task_args": config.task_args}]
    train = config.train or own_task or [{"source": config.train_file}]
    weights = whole_weights(train)
    seen: Counter[str] = Counter()
    parts = [_load(entry, config, reader, seed, seen, held_out=False, limit=None) for entry in train]
    names = [_name(entry) for entry in train]
    for name, part, weight in zip(names, parts, weights, strict=True):
        share = f", {weight / sum(weights):.1%} of the draws" if len(parts) > 1 else ""
        say(f"training: {name}: {_described(part, share)}")
    if not eval_size:
        return Mixture(parts, names, weights), []
    held_out = config.eval or ([{"source": config.eval_file}] if config.eval_file else own_task)
    turns = Turns(whole_weights(held_out))
    order = [turns.next() for _ in range(eval_size)]
    wanted = Counter(order)
    seen.clear()
    queues: list[list[Prompt]] = []
    for index, entry in enumerate(held_out):
        part = _load(entry, config, reader, seed, seen, held_out=True, limit=wanted[index])
        say(f"evaluation: {_name(entry)}: {_described(part)}")
        if len(part) < wanted[index]:
            others = f", of which {wanted[index]} are its share" if len(held_out) > 1 else ""
            raise DataError(f"{_name(entry)}: {len(part)} rows, but eval.prompts = {eval_size}{others}")
        queues.append(list(part)[::-1])
    return Mixture(parts, names, weights), [queues[index].pop() for index in order]


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("task") or "/".join(str(entry[key]) for key in ("source", "name", "split") if entry.get(key)))


def _described(part: Sequence[Prompt], share: str = "") -> str:
    left_out = said(part.findings) if isinstance(part, Rows) else ""
    return f"{len(part)} prompts{share}" + (f"; {left_out}" if left_out else "")


def _load(
    entry: Mapping[str, Any],
    config: DataConfig,
    reader: Reader,
    seed: int,
    seen: Counter[str],
    *,
    held_out: bool,
    limit: int | None,
) -> Sequence[Prompt]:
    """The prompts of one source."""
    if limit == 0:  # Its share of few evaluation prompts may be none.
        return []
    if "task" in entry:
        return _problems(entry, config, reader, seed, seen, limit if held_out else None)
    fields = {**config.fields, **entry.get("fields", {})}
    source, path = str(entry["source"]), Path(str(entry["source"]))
    own_name = path.stem if path.is_file() else path.name if path.is_dir() else source
    table = open_table(source, entry.get("split"), entry.get("name"), columns(fields))
    return Rows(table, _name(entry), own_name, fields, reader, seen, limit=limit)


def _problems(
    entry: Mapping[str, Any], config: DataConfig, reader: Reader, seed: int, seen: Counter[str], eval_size: int | None
) -> list[Prompt]:
    """The prompts of a procedural task: those of training, or so many of evaluation."""
    task, arguments = entry["task"], entry.get("task_args", {})
    sizes = {
        "train_size": entry.get("size", config.train_size) if eval_size is None else 0,
        "eval_size": eval_size or 0,
    }
    try:
        train, held_out = TASKS[task](seed=seed, **sizes, **arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"data.task = {task} with data.task_args = {arguments}: {error}") from error
    prompts: list[Prompt] = []
    for problem in train if eval_size is None else held_out:
        try:
            text, tokens = reader.tokenize(problem.prompt)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{task}: prompt {problem.problem_id}: {error}") from error
        if len(tokens) > config.max_prompt_tokens:
            raise DataError(
                f"{task}: prompt {problem.problem_id} has {len(tokens)} tokens; allowed is 1 to "
                f"data.max_prompt_tokens = {config.max_prompt_tokens}: raise it, or make the problems smaller with "
                "data.task_args"
            )
        seen[problem.problem_id] += 1
        repeat = seen[problem.problem_id]
        prompts.append(
            Prompt(
                prompt_id=problem.problem_id + (f"-{repeat}" if repeat > 1 else ""),
                text=text,
                token_ids=tokens,
                reference=problem.reference,
                source=task,
            )
        )
    return prompts


def whole_weights(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The weights of the sources in their lowest terms, as whole numbers, so that nothing is ever rounded."""
    exact = [Fraction(str(entry.get("weight", 1))) for entry in entries]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // gcd(*whole) for weight in whole]


class Turns:
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
        self._turns = Turns(self._prompts.weights)
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

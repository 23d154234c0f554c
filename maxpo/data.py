"""Prompts: where they come from, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from maxpo.config import DataConfig
from maxpo.errors import InputError
from maxpo.tasks import TASKS
from maxpo.types import Prompt

Encode = Callable[[str], Sequence[int]]
"""A tokenizer: text to token ids."""


class DataError(InputError):
    """Rows that cannot be used; the message names file, line, field and what was expected."""


def load_prompts(config: DataConfig, *, seed: int, eval_size: int, encode: Encode) -> tuple[list[Prompt], list[Prompt]]:
    """Training and evaluation prompts, tokenized.

    Args:
        config: a procedural task, or JSON-lines files.
        seed: of a procedural task.
        eval_size: evaluation prompts wanted; of a file the first ones are taken. 0: none.
        encode: the policy's tokenizer.

    Raises:
        DataError: bad rows, a prompt over `data.max_prompt_tokens`, or too few evaluation rows.
    """
    if config.task is not None:
        try:
            train, held_out = TASKS[config.task](
                seed=seed, train_size=config.train_size, eval_size=eval_size, **config.task_args
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"data.task = {config.task} with data.task_args = {config.task_args}: {error}") from error
        rows = [[(p.problem_id, p.prompt, p.reference) for p in split] for split in (train, held_out)]
        source = config.task
    else:
        assert config.train_file is not None
        rows = [_read_rows(Path(config.train_file)), []]
        if eval_size:
            assert config.eval_file is not None
            rows[1] = _read_rows(Path(config.eval_file))[:eval_size]
        source = Path(config.train_file).stem
    if len(rows[1]) < eval_size:
        raise DataError(f"{config.eval_file}: {len(rows[1])} rows, but eval.prompts = {eval_size}")
    return _tokenize(rows[0], source, config, encode), _tokenize(rows[1], source, config, encode)


def _tokenize(rows: Sequence[tuple[str, str, Any]], source: str, config: DataConfig, encode: Encode) -> list[Prompt]:
    prompts: list[Prompt] = []
    for prompt_id, text, reference in rows:
        token_ids = tuple(encode(text))
        if not 1 <= len(token_ids) <= config.max_prompt_tokens:
            raise DataError(
                f"{source}: prompt {prompt_id} has {len(token_ids)} tokens; allowed is 1 to "
                f"data.max_prompt_tokens = {config.max_prompt_tokens}"
            )
        prompts.append(Prompt(prompt_id=prompt_id, text=text, token_ids=token_ids, reference=reference, source=source))
    return prompts


def _read_rows(path: Path) -> list[tuple[str, str, Any]]:
    """(id, prompt, answer) of each row. The id is the hash of the row, numbered where rows repeat."""
    rows: list[tuple[str, str, Any]] = []
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg})")
            continue
        if not isinstance(row, dict):
            problems.append(f"line {number}: expected an object with `prompt` and `answer`")
            continue
        fields = cast("dict[str, Any]", row)
        if not isinstance(fields.get("prompt"), str) or not fields["prompt"]:
            problems.append(f"line {number}: field `prompt` must be a non-empty string")
        elif "answer" not in fields:
            problems.append(f"line {number}: field `answer` is missing; the row has {sorted(fields)}")
        else:
            content = json.dumps([fields["prompt"], fields["answer"]], sort_keys=True)
            digest = hashlib.sha256(content.encode()).hexdigest()[:16]
            seen[digest] += 1
            rows.append((f"{digest}-{seen[digest]}", fields["prompt"], fields["answer"]))
    if problems:
        shown = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise DataError(f"{path}: {len(problems)} of {len(problems) + len(rows)} rows cannot be used:\n  {shown}")
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


class PromptStream:
    """Prompts in an order that a seed and an integer determine: a new permutation for each pass over the data."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Start at the beginning of the first pass."""
        self._prompts = prompts
        self._seed = seed
        self._cursor = 0
        self._order: tuple[int, list[int]] | None = None

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts; passes follow one another without a gap."""
        taken: list[Prompt] = []
        for _ in range(count):
            epoch, position = divmod(self._cursor, len(self._prompts))
            taken.append(self._prompts[self._permutation(epoch)[position]])
            self._cursor += 1
        return taken

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self._cursor / len(self._prompts)

    def state_dict(self) -> dict[str, Any]:
        """The position, and which prompts it is in, as plain JSON."""
        return {"cursor": self._cursor, "seed": self._seed, "prompts": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Raises:
            DataError: the position belongs to another seed, or to other prompts.
        """
        if state["seed"] != self._seed:
            raise DataError(f"the data position was saved with run.seed = {state['seed']}, this run has {self._seed}")
        if state["prompts"] != self._fingerprint:
            raise DataError(
                "the training prompts are not those of the checkpoint, so its position in them means nothing: the "
                "rows (data.train_file, or data.task with its settings) or the tokenizer in model.path have changed"
            )
        self._cursor = state["cursor"]

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of the prompts in their order, with their tokens."""
        digest = hashlib.sha256()
        for prompt in self._prompts:
            digest.update(json.dumps([prompt.prompt_id, prompt.token_ids]).encode())
        return digest.hexdigest()

    def _permutation(self, epoch: int) -> list[int]:
        if self._order is None or self._order[0] != epoch:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = epoch, order
        return self._order[1]

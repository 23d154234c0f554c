"""Prompts: where they come from, and the order in which training sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxpo.config import DataConfig
from maxpo.data.order import Mixture, WeightedRoundRobin, integer_weights
from maxpo.data.rows import Chat, Encode, Reader, Rows, columns, said
from maxpo.data.tables import open_table
from maxpo.errors import DataError
from maxpo.tasks.registry import TASKS
from maxpo.types import Prompt


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
    weights = integer_weights(train)
    seen: Counter[str] = Counter()
    parts = [_load(entry, config, reader, seed, seen, held_out=False, limit=None) for entry in train]
    names = [_name(entry) for entry in train]
    for name, part, weight in zip(names, parts, weights, strict=True):
        share = f", {weight / sum(weights):.1%} of the draws" if len(parts) > 1 else ""
        say(f"training: {name}: {_described(part, share)}")
    if not eval_size:
        return Mixture(parts, names, weights), []
    held_out = config.eval or ([{"source": config.eval_file}] if config.eval_file else own_task)
    rotation = WeightedRoundRobin(integer_weights(held_out))
    order = [rotation.next() for _ in range(eval_size)]
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

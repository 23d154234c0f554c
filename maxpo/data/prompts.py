"""Training and evaluation prompts from files, data sets and procedural tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxpo.config import DataConfig
from maxpo.data.order import Mixture, WeightedRoundRobin, integer_weights
from maxpo.data.rows import SOURCE_NAME, Chat, Encode, Reader, Rows, columns, is_source, left_out
from maxpo.data.tables import open_table
from maxpo.errors import DataError
from maxpo.tasks.base import TaskProblem
from maxpo.tasks.registry import TASKS
from maxpo.types import Prompt
from maxpo.wording import shown

Entry = Mapping[str, Any]
"""A source, as in `data.train`."""


def load_prompts(
    config: DataConfig,
    *,
    seed: int,
    eval_size: int,
    encode: Encode,
    chat: Chat | None = None,
    check: Callable[[object, str], None] = lambda reference, source: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Mixture, list[Prompt]]:
    """Return the training and the evaluation prompts. Rows of files are checked now, and made into prompts when drawn.

    Args:
        config: Section `data`.
        seed: Seed of procedural tasks.
        eval_size: Largest number of evaluation prompts, the first ones of each file. 0: none.
        encode: Tokenizer of the policy.
        chat: Chat template of the tokenizer. None: the tokenizer has none.
        check: Called with the reference and the source of each row. Raises ValueError if the row cannot be used.
        say: Called with a line about each source and the rows that are left out.

    Raises:
        DataError: Rows are wrong, or a prompt is over `data.max_prompt_tokens`.
    """
    reader = Reader(
        encode=encode,
        **({} if chat is None else {"chat": chat}),
        as_chat=config.chat,
        system_prompt=config.system_prompt,
        max_tokens=config.max_prompt_tokens,
        drop_overlong=config.overlong == "drop",
        max_bad_rows=config.max_bad_rows,
        check=check,
    )
    task: list[Entry] = [] if config.task is None else [{"task": config.task, "task_args": config.task_args}]
    train: Sequence[Entry] = config.train or task or [{"source": config.train_file}]
    held_out: Sequence[Entry] = config.eval or ([{"source": config.eval_file}] if config.eval_file else task)
    training = _training(train, config, reader, seed, say)
    return training, _evaluation(held_out, config, reader, seed, eval_size, say) if eval_size else []


def _training(
    entries: Sequence[Entry], config: DataConfig, reader: Reader, seed: int, say: Callable[[str], None]
) -> Mixture:
    weights = integer_weights(entries)
    names = [_name(entry) for entry in entries]
    seen: Counter[str] = Counter()
    parts = [_load(entry, config, reader, seed, seen, held_out=False, limit=None) for entry in entries]
    for name, part, weight in zip(names, parts, weights, strict=True):
        share = f", {weight / sum(weights):.1%} of the draws" if len(parts) > 1 else ""
        say(f"training: {name}: {_described(part, share)}")
    return Mixture(parts, names, weights)


def _evaluation(
    entries: Sequence[Entry], config: DataConfig, reader: Reader, seed: int, size: int, say: Callable[[str], None]
) -> list[Prompt]:
    """Return the first prompts of each source, as many as its weight allows, in the order of a mixture.

    A source with fewer prompts gives all that it has.
    """
    rotation = WeightedRoundRobin(integer_weights(entries))
    order = [rotation.next() for _ in range(size)]
    seen: Counter[str] = Counter()
    queues: list[list[Prompt]] = []
    for entry, wanted in zip(entries, rotation.drawn, strict=True):
        part = _load(entry, config, reader, seed, seen, held_out=True, limit=wanted)
        share = f", of which {wanted} are its share" if len(entries) > 1 else ""
        short = f", all that it has (eval.prompts = {size}{share})" if len(part) < wanted else ""
        say(f"evaluation: {_name(entry)}: {_described(part, short)}")
        queues.append(list(part)[::-1])
    return [queues[source].pop() for source in order if queues[source]]


def _name(entry: Entry) -> str:
    return str(entry.get("task") or "/".join(str(entry[key]) for key in ("source", "name", "split") if entry.get(key)))


def _described(part: Sequence[Prompt], note: str = "") -> str:
    missing = left_out(part.summary) if isinstance(part, Rows) else ""
    return f"{len(part)} prompts{note}" + (f"; {missing}" if missing else "")


def _load(
    entry: Entry,
    config: DataConfig,
    reader: Reader,
    seed: int,
    seen: Counter[str],
    *,
    held_out: bool,
    limit: int | None,
) -> Sequence[Prompt]:
    """Return the prompts of one source."""
    if limit == 0:  # a source with a small weight may have no share of few evaluation prompts
        return []
    if "task" in entry:
        return _problems(entry, config, reader, seed, seen, limit if held_out else None)
    fields = {**config.fields, **entry.get("fields", {})}
    source, path = str(entry["source"]), Path(str(entry["source"]))
    own_name = path.stem if path.is_file() else path.name if path.is_dir() else source
    if not is_source(own_name):
        raise DataError(f"{shown(source)}: the name of a source must have {SOURCE_NAME}: rename the file")
    table = open_table(source, entry.get("split"), entry.get("name"), columns(fields))
    return Rows(table, _name(entry), own_name, fields, reader, seen, limit=limit)


def _problems(
    entry: Entry, config: DataConfig, reader: Reader, seed: int, seen: Counter[str], eval_size: int | None
) -> list[Prompt]:
    """Return the prompts of a procedural task: `eval_size` evaluation prompts, or with None the training prompts."""
    task, arguments = entry["task"], entry.get("task_args", {})
    sizes = {
        "train_size": entry.get("size", config.train_size) if eval_size is None else 0,
        "eval_size": eval_size or 0,
    }
    try:
        train, held_out = TASKS[task](seed=seed, **sizes, **arguments)
    # The arguments of a task may be of any type.
    except Exception as error:
        text = shown(f"data.task = {task} with data.task_args = {arguments}: {type(error).__name__}: {error}", 400)
        raise DataError(text) from error
    problems = train if eval_size is None else held_out
    return [_task_prompt(task, problem, config, reader, seen) for problem in problems]


def _task_prompt(task: str, problem: TaskProblem, config: DataConfig, reader: Reader, seen: Counter[str]) -> Prompt:
    try:
        text, tokens = reader.tokenize(problem.prompt)
        reader.check(problem.reference, task)
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
    return Prompt(
        prompt_id=problem.problem_id + (f"-{repeat}" if repeat > 1 else ""),
        text=text,
        token_ids=tokens,
        reference=problem.reference,
        source=task,
    )

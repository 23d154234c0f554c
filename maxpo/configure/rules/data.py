"""Checks of the section `data`, with each source in `data.train` and `data.eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from maxpo.config.data import FIELDS, are_fields
from maxpo.configure.rules import Combination
from maxpo.tasks.registry import TASKS

PATH_HELP = "A relative path starts at the folder in which the command is run, and ~ is not expanded."
FILE_ENDINGS = (".jsonl", ".json", ".parquet")
"""Endings that make a source a file."""
_NUMBER = (int, float)
_OF_ROWS: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "split": str,
    "name": str,
    "fields": dict,
    "weight": _NUMBER,
}
_OF_TASKS: dict[str, type | tuple[type, ...]] = {"task": str, "task_args": dict, "size": int, "weight": _NUMBER}
_WORDS: dict[type | tuple[type, ...], str] = {
    str: "text",
    dict: "a mapping",
    int: "a whole number",
    _NUMBER: "a number",
}

DATA_COMBINATIONS: tuple[Combination, ...] = (
    (
        ("data.task", "data.train_file", "data.train"),
        lambda c: (c.data.task is not None) + (c.data.train_file is not None) + bool(c.data.train) == 1,
        "Exactly one of these must be set, the others null or []: a procedural task, a file of rows, or sources.",
    ),
    (
        ("data.eval_file", "data.eval"),
        lambda c: c.data.eval_file is None or not c.data.eval,
        "At most one of these may be set: add the file to the sources in data.eval.",
    ),
    (
        ("data.eval_file", "data.eval", "data.train_file", "data.train", "eval.every", "eval.at_start", "eval.at_end"),
        lambda c: (
            (c.data.train_file is None and not c.data.train)
            or c.data.eval_file is not None
            or bool(c.data.eval)
            or not (c.eval.every or c.eval.at_start or c.eval.at_end)
        ),
        "Training rows need data.eval_file or data.eval, or all evaluation off: every 0, at_start and at_end false.",
    ),
)


def source_problems(sources: Sequence[Mapping[str, object]], *, files_here: bool) -> Iterator[str]:
    """Yield the mistakes in the entries of `data.train` or `data.eval`.

    Args:
        sources: Entries of the setting.
        files_here: True if the named files are on this machine.
    """
    for number, source in enumerate(sources, start=1):
        yield from (f"Entry {number}: {wrong}" for wrong in _source_problems(source, files_here=files_here))


def _source_problems(source: Mapping[str, object], *, files_here: bool) -> Iterator[str]:
    if ("source" in source) == ("task" in source):
        yield "it must have either `source` (a file, folder or dataset id) or `task` (a procedural task)."
        return
    known = _OF_ROWS if "source" in source else _OF_TASKS
    for name, value in source.items():
        if name not in known:
            yield f"there is no `{name}` here; besides `{next(iter(known))}` there are {', '.join([*known][1:])}."
        elif not isinstance(value, known[name]) or isinstance(value, bool):
            yield f"{name} = {value!r} must be {_WORDS[known[name]]}."
        elif message := _out_of_range(name, value, files_here=files_here):
            yield message


def _out_of_range(name: str, value: object, *, files_here: bool) -> str | None:
    """Return the mistake in one value of a source, or None. The type of the value is correct."""
    match name, value:
        case "weight", int(number) | float(number) if not 1e-6 <= number <= 1e6:
            return f"weight = {value} must be 0.000001 to 1000000."
        case "size", int(number) if not 1 <= number <= 10**7:
            return f"size = {value} must be 1 to 10000000."
        case "task", str(task) if task not in TASKS:
            return f"task = {value} must be one of {', '.join(TASKS)}."
        case "fields", dict() if not are_fields(cast("Mapping[str, object]", value)):
            return f"fields = {value} must map some of {', '.join(FIELDS)} to names of fields."
        case "source", str(file) if files_here and file.endswith(FILE_ENDINGS) and not Path(file).is_file():
            return f"there is no file {value}. {PATH_HELP}"
        case _:
            return None


def local_sources(sources: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the files and folders among the sources. All other names may be dataset ids."""
    named = [str(source["source"]) for source in sources if "source" in source]
    return [name for name in named if name.endswith(FILE_ENDINGS) or Path(name).exists() or Path(name).is_absolute()]

"""Checks of the section `data`, in the form of `configcheck.py`; the sources of `train` and `eval` one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxpo.config import Config
from maxpo.tasks.registry import TASKS

PATH_HELP = "A relative path starts at the folder in which the command is run, and ~ is not expanded."
FIELDS = ("prompt", "answer", "source")
"""What `data.fields` may say the place of."""
FILE_ENDINGS = (".jsonl", ".json", ".parquet")
"""A source that ends so is a file."""
# What would make the template return something else than the text of a prompt.
_RESERVED = set(
    """
    conversation messages add_generation_prompt continue_final_message tokenize return_dict return_tensors
    return_assistant_tokens_mask padding truncation max_length
""".split()
)
_OF_ROWS: dict[str, Any] = {"source": str, "split": str, "name": str, "fields": dict, "weight": (int, float)}
_OF_TASKS: dict[str, Any] = {"task": str, "task_args": dict, "size": int, "weight": (int, float)}
_WORDS: dict[Any, str] = {str: "text", dict: "a mapping", int: "a whole number", (int, float): "a number"}


def are_fields(value: Mapping[str, Any]) -> bool:
    """Whether a mapping says where rows have their fields."""
    return set(value) <= set(FIELDS) and all(isinstance(name, str) and name for name in value.values())


DATA_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("data.train_file", lambda v: Path(v).is_file(), f"There is no such file. {PATH_HELP}"),
    ("data.eval_file", lambda v: Path(v).is_file(), f"There is no such file. {PATH_HELP}"),
    (
        "data.fields",
        are_fields,
        f"Must map some of {', '.join(FIELDS)} to names of fields, such as {{prompt: question}}.",
    ),
    (
        "data.template_args",
        lambda v: not _RESERVED & set(v),
        f"Must not have {', '.join(sorted(_RESERVED))}: these are not the template's own.",
    ),
)

DATA_COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("data.task", "data.train_file", "data.train"),
        lambda c: (c.data.task is not None) + (c.data.train_file is not None) + bool(c.data.train) == 1,
        "Exactly one of them must be set, the others null or []: a procedural task, a file of rows, or sources.",
    ),
    (
        ("data.eval_file", "data.eval"),
        lambda c: c.data.eval_file is None or not c.data.eval,
        "At most one of them may be set: add the file to the sources in data.eval.",
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


def source_problems(sources: Sequence[Mapping[str, Any]], *, files_here: bool) -> Iterator[str]:
    """What is wrong with the entries of `data.train` or `data.eval`."""
    for number, source in enumerate(sources, start=1):
        yield from (f"Entry {number}: {wrong}" for wrong in _source_problems(source, files_here=files_here))


def _source_problems(source: Mapping[str, Any], *, files_here: bool) -> Iterator[str]:
    if ("source" in source) == ("task" in source):
        yield "it must have either `source` (a file, folder or dataset id) or `task` (a procedural task)."
        return
    known = _OF_ROWS if "source" in source else _OF_TASKS
    for name, value in source.items():
        if name not in known:
            yield f"there is no `{name}` here; besides `{next(iter(known))}` there are {', '.join([*known][1:])}."
        elif not isinstance(value, known[name]) or isinstance(value, bool):
            yield f"{name} = {value!r} must be {_WORDS[known[name]]}."
        elif name == "weight" and not (0 < value < math.inf):
            yield f"weight = {value} must be more than 0, and finite."
        elif name == "size" and value <= 0:
            yield f"size = {value} must be more than 0."
        elif name == "task" and value not in TASKS:
            yield f"task = {value} must be one of {', '.join(TASKS)}."
        elif name == "fields" and not are_fields(value):
            yield f"fields = {value} must map some of {', '.join(FIELDS)} to names of fields."
        elif name == "source" and files_here and value.endswith(FILE_ENDINGS) and not Path(value).is_file():
            yield f"there is no file {value}. {PATH_HELP}"


def local_sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files and folders among the sources; what is neither may be a dataset id."""
    named = [str(source["source"]) for source in sources if "source" in source]
    return [name for name in named if name.endswith(FILE_ENDINGS) or Path(name).exists() or Path(name).is_absolute()]

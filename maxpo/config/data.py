"""Settings of the section `data`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Literal

from maxpo.config.ranges import COUNT, COUNT_OR_NONE, Arguments, Must, between

FIELDS = ("prompt", "answer", "source")
"""Fields of a row that `data.fields` may rename."""
# Arguments that would make the template return something else than the text of a prompt.
_RESERVED = set(
    """
    conversation messages add_generation_prompt continue_final_message tokenize return_dict return_tensors
    return_assistant_tokens_mask padding truncation max_length
""".split()
)


def are_fields(value: Mapping[str, object]) -> bool:
    """Return True if the mapping renames known fields of rows, each to a name."""
    return set(value) <= set(FIELDS) and all(isinstance(name, str) and name for name in value.values())


def is_date(value: str) -> bool:
    """Return True if the text is a date such as 2026-01-31."""
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


@dataclass(kw_only=True)
class DataConfig:
    """Sources of the prompts."""

    task: str | None = None
    """Procedural task that makes the prompts, for example `countdown`. Makes the evaluation prompts, too, unless
    `eval_file` or `eval` is set. Exactly one of `task`, `train_file` and `train` must be set."""
    task_args: Arguments = field(default_factory=Arguments)
    """Arguments of the procedural task."""
    train_size: Annotated[int, between(1, 10**7)] = 6000
    """Number of training problems that a procedural task makes. No effect on files."""
    train_file: str | None = None
    """File of training rows: .parquet, or JSON lines for any other ending. Each row has `prompt` (text or chat
    messages) and `answer`, or the ground truth in the layout of verl and SkyRL."""
    eval_file: str | None = None
    """File of evaluation rows, in the format of `train_file`. Training rows from `train_file` or `train` need
    `eval_file` or `eval`, unless evaluation is off (`eval.every`, `eval.at_start` and `eval.at_end`)."""
    train: list[Arguments] = field(default_factory=list[Arguments])
    """Several sources to draw from, each a mapping. Source of rows: `source` (a file in the format of `train_file`, a
    folder that `save_to_disk` of the datasets library wrote, or a dataset id in the cache of that library; nothing is
    downloaded), `split` and `name` (the configuration) of a dataset. Source with a procedural task: `task`,
    `task_args`, `size` (default `train_size`). Both: `weight` (default 1: share of the prompts drawn, relative to the
    other sources)."""
    eval: list[Arguments] = field(default_factory=list[Arguments])
    """Sources of evaluation prompts in the format of `train`, instead of `eval_file`. The total is `eval.prompts`. Each
    source gives its first prompts, in proportion to its weight, or all that it has. `size` has no effect."""
    fields: Annotated[
        Arguments,
        Must(are_fields, f"Must map some of {', '.join(FIELDS)} to names of fields, such as {{prompt: question}}."),
    ] = field(default_factory=Arguments)
    """Names of the fields that rows have in place of `prompt`, `answer` and `source`, for example {prompt: question,
    answer: meta.solution}. A dot leads into a nested field. A source in `train` or `eval` may have its own `fields`. No
    effect on tasks."""
    chat: bool = False
    """Send a text prompt as a user's message, through the tokenizer's chat template. Chat messages always go through
    the template."""
    system_prompt: str | None = None
    """System message before the messages of each prompt. No effect on prompts that begin with a system message, nor on
    text without `chat`."""
    template_args: Annotated[
        Arguments,
        Must(
            lambda v: not _RESERVED & set(v),
            f"Must not have {', '.join(sorted(_RESERVED))}: these are not the template's own.",
        ),
    ] = field(default_factory=Arguments)
    """Further arguments of the chat template, for example {enable_thinking: false}. No effect on text without
    `chat`."""
    date: Annotated[str | None, Must(is_date, "Must be a date such as 2026-01-31.")] = None
    """Date that chat templates read in place of the clock. null: the day of the start (UTC), which is written into the
    run's settings and stays when the run resumes."""
    max_prompt_tokens: Annotated[int, COUNT] = 512
    """Longest prompt in tokens. Longer prompts are refused before the start, or left out, see `overlong`."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """Treatment of prompts longer than `max_prompt_tokens`. refuse: the run does not start. drop: these prompts are
    left out, counted and reported."""
    max_bad_rows: Annotated[int, COUNT_OR_NONE] = 0
    """Largest number of unusable rows of each source (no JSON, a field missing). Up to this number, rows are left out,
    counted and reported; more rows are refused."""

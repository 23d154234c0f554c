"""Where the prompts come from: the section `data` of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class DataConfig:
    """Where the prompts come from."""

    task: str | None = None
    """Procedural task that makes the prompts, for example `countdown`, and the evaluation prompts unless `eval_file`
    or `eval` names others. Exactly one of `task`, `train_file` and `train`."""
    task_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of the procedural task."""
    train_size: int = 6000
    """Number of training problems that a procedural task makes. No effect on files."""
    train_file: str | None = None
    """File of training rows: .parquet, or anything else as JSON lines. Each row has `prompt` (text or chat messages)
    and `answer`, or the ground truth where verl and SkyRL keep it."""
    eval_file: str | None = None
    """File of evaluation rows, as `train_file`. Rows for training from `train_file` or `train` need it or `data.eval`,
    unless evaluation is off (`eval.every`, `eval.at_start` and `eval.at_end`)."""
    train: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Several sources to draw from, each a mapping. Of rows: `source` (a file as in `train_file`, a folder that
    `save_to_disk` of the datasets library wrote, or a dataset id that is in its cache; nothing is downloaded), `split`
    and `name` (the configuration) of a dataset. Of a procedural task: `task`, `task_args`, `size` (default
    `train_size`). Of both: `weight` (default 1: the share of the prompts drawn, relative to the others)."""
    eval: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Sources of evaluation prompts, as in `train`; instead of `eval_file`. `eval.prompts` are taken in all, of each
    source the first ones, by weight; `size` has no effect."""
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    """Where rows have `prompt`, `answer` and `source`, for example {prompt: question, answer: meta.solution}; a dot
    goes into a nested field. A source in `train` or `eval` may have `fields` of its own. No effect on tasks."""
    chat: bool = False
    """Send a prompt that is text as a user's message, through the tokenizer's chat template. Messages always go through
    it."""
    system_prompt: str | None = None
    """System message before the messages of each prompt. No effect on prompts that begin with one of their own, nor on
    text without `chat`."""
    template_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of the chat template, for example {enable_thinking: false}. No effect on text without
    `chat`."""
    max_prompt_tokens: int = 512
    """Prompts longer than this many tokens are refused before anything starts, or left out, see `overlong`."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """What happens to prompts over `max_prompt_tokens`: the run is refused, or they are left out, counted and said."""
    max_bad_rows: int = 0
    """Rows of each source that may be unusable (no JSON, a field missing): up to so many are left out, counted and
    said; more are refused."""

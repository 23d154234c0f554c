"""Where the prompts come from: the section `data` of `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class DataConfig:
    """Where the prompts come from."""

    task: str | None = None
    """Procedural task that makes the prompts, for example `countdown`. Exactly one of `task` and `train_file`."""
    task_args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of the procedural task."""
    train_size: int = 6000
    """Number of training problems that a procedural task makes. No effect with `train_file`."""
    train_file: str | None = None
    """JSON-lines file of training rows, each with `prompt` (text) and `answer`."""
    eval_file: str | None = None
    """JSON-lines file of evaluation rows. Needed with `train_file` unless `eval` is off: every, at_start and at_end."""
    max_prompt_tokens: int = 512
    """Prompts longer than this many tokens are refused before anything starts."""

"""The file that `maxpo evaluate` leaves, `eval.json`: settings, figures, and what was found for each prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from maxpo.errors import InputError
from maxpo.evaluation.figures import EvalReport, PromptResult
from maxpo.files import clear_errors, replacing

EVAL_FILE = "eval.json"
FORMAT = 1
"""Counts changes after which older files cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `eval.json` holds, as far as a comparison needs it."""

    path: Path
    model: str
    settings: Mapping[str, Mapping[str, Any]]
    """All settings by section, as written: what reads the environment is not resolved."""
    results: tuple[PromptResult, ...]


def write_evaluation(
    path: Path, model: str, settings: Mapping[str, Any], report: EvalReport, results: Sequence[PromptResult]
) -> None:
    """Write the file, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    head = json.dumps({"format": FORMAT, "model": model, "settings": settings, **asdict(report)}, indent=2)
    assert head.endswith("\n}")
    rows = ",\n".join(f"    {json.dumps(asdict(result))}" for result in results)  # a prompt on each line
    with clear_errors(path), replacing(path) as partial:
        partial.write_text(f'{head[:-2]},\n  "prompts": [\n{rows}\n  ]\n}}\n', encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Read the file, or the one in the folder `path`.

    Raises:
        InputError: there is none, or it is not one of these.
    """
    file = path / EVAL_FILE if path.is_dir() else path
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no {EVAL_FILE}; `maxpo evaluate MODEL FILE.yaml --out DIR` makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    content = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    version = content.get("format")
    if version != FORMAT:
        raise InputError(f"{file} is no file of `maxpo evaluate` of format {FORMAT}: its `format` is {version}")
    try:
        results = tuple(PromptResult.from_dict(row) for row in content["prompts"])
        return Evaluation(path=path, model=content["model"], settings=content["settings"], results=results)
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error

"""The file `eval.json` of `maxpo evaluate`: settings, figures, and the result of each prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from maxpo.errors import InputError
from maxpo.evaluation.figures import EvalReport, JsonObject, PromptResult
from maxpo.files import clear_errors, replacing

EVAL_FILE = "eval.json"
FORMAT = 1
"""Version of the file format. A new version cannot read older files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The part of `eval.json` that a comparison needs."""

    path: Path
    model: str
    settings: Mapping[str, JsonObject]
    """All settings by section, as written in the file. References to environment variables are not resolved."""
    results: tuple[PromptResult, ...]


def write_evaluation(
    path: Path, model: str, settings: JsonObject, report: EvalReport, results: Sequence[PromptResult]
) -> None:
    """Write the file atomically.

    Raises:
        RunError: The file cannot be written.
    """
    head = json.dumps({"format": FORMAT, "model": model, "settings": settings, **asdict(report)}, indent=2)
    assert head.endswith("\n}")
    # One line for each prompt keeps a file of many prompts legible, which `indent` would not.
    rows = ",\n".join(f"    {json.dumps(asdict(result))}" for result in results)
    with clear_errors(path), replacing(path) as partial:
        partial.write_text(f'{head[:-2]},\n  "prompts": [\n{rows}\n  ]\n}}\n', encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Read the file `path`, or `eval.json` in the folder `path`.

    Raises:
        InputError: The file does not exist, or is not a readable file of this format.
    """
    file = path / EVAL_FILE if path.is_dir() else path
    try:
        document: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no {EVAL_FILE}. `maxpo evaluate MODEL FILE.yaml --out DIR` writes one."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    content: JsonObject = cast("JsonObject", document) if isinstance(document, dict) else {}
    version = content.get("format")
    if version != FORMAT:
        raise InputError(f"{file} is not a file of `maxpo evaluate` of format {FORMAT}: its `format` is {version}")
    try:
        results = tuple(PromptResult.from_dict(row) for row in content["prompts"])
        return Evaluation(path=path, model=content["model"], settings=content["settings"], results=results)
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error

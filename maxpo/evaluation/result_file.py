"""The file `eval.json` of `maxpo evaluate`: settings, figures, and the result of each prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from maxpo.checked_json import parse
from maxpo.errors import InputError
from maxpo.evaluation.figures import EvalReport, JsonObject, PromptResult
from maxpo.files import clear_errors, replacing

EVAL_FILE = "eval.json"
FORMAT = 1
"""Version of the file format. A new version cannot read older files."""


class _Format(TypedDict):
    """The part that files of all versions have."""

    format: int


class _Document(TypedDict):
    """The part of the file that a comparison reads."""

    model: str
    settings: dict[str, dict[str, Any]]
    prompts: list[dict[str, Any]]


class _EvalSettings(TypedDict):
    k: list[Annotated[int, Field(ge=1)]]
    greedy: bool


class _Environment(TypedDict):
    name: str | None


class _Settings(TypedDict):
    """The settings that a comparison reads."""

    eval: _EvalSettings
    rollout: dict[str, Any]
    reward: dict[str, Any]
    environment: _Environment


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
        text = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no {EVAL_FILE}. `maxpo evaluate MODEL FILE.yaml --out DIR` writes one."
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    try:
        version = parse(_Format, text)["format"]
        if version != FORMAT:
            raise InputError(f"{file} is of format {version}, and this version reads {FORMAT}")
        content = parse(_Document, text)
        parse(_Settings, json.dumps(content["settings"]))
        results = tuple(PromptResult.from_dict(row) for row in content["prompts"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{file} is not a file of `maxpo evaluate`, or is damaged: {reason}") from error
    return Evaluation(path=path, model=content["model"], settings=content["settings"], results=results)

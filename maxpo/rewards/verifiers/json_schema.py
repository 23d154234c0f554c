"""The verifier for JSON that must fit a schema."""

from __future__ import annotations

import importlib
import json
import re
from functools import lru_cache
from typing import Any, NoReturn

from maxpo.rewards.base import Score

_FENCE = re.compile(r"^```(json)?[ \t\r]*$", re.MULTILINE)


def json_schema(text: str, reference: object) -> Score:
    """Return reward 1 if the text, or its last fenced json block, is JSON that fits the schema, otherwise 0.

    NaN and Infinity are not JSON. The schema's `format` is not checked. `$ref` resolves only within the schema, and
    nothing is fetched.

    Args:
        text: Any text.
        reference: A JSON schema, as a mapping or as text. Draft 2020-12 applies if the schema names no draft.

    Returns:
        The reward, and the part `format`: 1 if the text is JSON, otherwise 0.

    Raises:
        ValueError: The reference is not a schema.
    """
    validator = _validator(reference if isinstance(reference, str) else json.dumps(reference, sort_keys=True))
    try:
        value = json.loads(_json_text(text), parse_constant=_refuse)
    except (ValueError, RecursionError):  # Not JSON, numbers of too many digits, or nested too deeply.
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    try:
        valid = bool(validator.is_valid(value))
    except (ArithmeticError, RecursionError):  # A recursive schema, or 1e999 asked for its multiples.
        valid = False
    return Score(reward=float(valid), success=valid, parts={"format": 1.0})


def _json_text(text: str) -> str:
    """Return the content of the last fenced json block, or all text if no such block exists."""
    start: int | None = None
    last: tuple[int, int] | None = None
    for fence in _FENCE.finditer(text):
        if fence[1]:
            start = fence.end()
        elif start is not None:
            last, start = (start, fence.start()), None
    return text[slice(*last)] if last else text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    jsonschema: Any = importlib.import_module("jsonschema")  # here, since jsonschema is optional
    registry: Any = importlib.import_module("referencing").Registry()
    try:
        content: Any = json.loads(schema)
        if not isinstance(content, dict | bool):
            raise ValueError("it is neither an object nor true or false")
        kind = jsonschema.validators.validator_for(content, default=jsonschema.Draft202012Validator)
        kind.check_schema(content)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema: the reference must be a JSON schema: {error.message}") from error
    except ValueError as error:
        raise ValueError(f"json_schema: the reference must be a JSON schema: {error}") from error
    return kind(content, registry=registry)  # the default registry of jsonschema would fetch the target of a $ref

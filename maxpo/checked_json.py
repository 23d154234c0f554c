"""JSON of files that may be damaged, read as checked types."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def parse(kind: type[T], text: str | bytes) -> T:
    """Return JSON text as a type: a dataclass, or a TypedDict of typing_extensions. Further keys are left out.

    Args:
        kind: The type. Nothing is converted, but numbers without a decimal point may stand for floats.
        text: JSON.

    Raises:
        ValueError: The text is no JSON, or is of another type. The message names the key and the type.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from error


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Return the validator of a type. Making one takes longer than a row of a file."""
    return TypeAdapter(kind)

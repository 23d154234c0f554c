"""Messages between the two sides of a sandbox. Also runs inside, so imports the standard library only."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` takes a third of the time in which a sandbox starts
if TYPE_CHECKING:
    from collections.abc import Iterable  # noqa: F401
    from typing import Any, cast
else:

    def cast(kind, value):  # noqa: D103
        return value


OUTPUT_BYTES = 4 << 20
"""Bytes of the longest output of a case, and of the longest line between the tests and the program."""


class UnsupportedError(Exception):
    """A test passes something that is not plain data to the program."""


class _Opaque:
    """Placeholder for a value that is not plain data. Equal to nothing but itself."""


def encode(value: object, *, strict: bool = False) -> object:
    """Return plain data as JSON that distinguishes Python's types. Subclasses become their base.

    Raises:
        UnsupportedError: The value is not plain data and `strict` is True. Otherwise a mark takes its place.
        TypeError: `strict` is True, and the value came from `decode` with such a mark.
    """
    if value is None or isinstance(value, bool | float | str):
        return (
            value if value is None or isinstance(value, bool) else (float if isinstance(value, float) else str)(value)
        )
    if isinstance(value, int):
        return ["i", hex(value)]  # decimal digits of large numbers are slow, and limited
    if isinstance(value, list | tuple | set | frozenset):
        items = cast("Iterable[object]", value)
        kind = "l" if isinstance(value, list) else "t" if isinstance(value, tuple) else "s"
        return [kind, *(encode(item, strict=strict) for item in items)]
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return ["d", *([encode(k, strict=strict), encode(v, strict=strict)] for k, v in pairs)]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    if strict and isinstance(value, _Opaque):
        raise TypeError("the program returned something that is not plain data")
    if strict:
        raise UnsupportedError(f"a test passes {type(value).__name__} to the program: only plain data can be passed")
    return ["?"]


def decode(tree: Any) -> Any:
    """Return the value that `encode` was given."""
    if not isinstance(tree, list):
        return tree
    kind, *items = cast("list[Any]", tree)
    if kind == "i":
        return int(items[0], 16)
    if kind == "l":
        return [decode(item) for item in items]
    if kind == "t":
        return tuple(decode(item) for item in items)
    if kind == "s":
        return {decode(item) for item in items}
    if kind == "d":
        return {decode(key): decode(value) for key, value in items}
    if kind == "c":
        return complex(*items)
    return bytes.fromhex(items[0]) if kind == "b" else _Opaque()


def write(fd: int, data: bytes) -> None:
    """Write all the data."""
    while data:
        data = data[os.write(fd, data) :]


def frame(fd: int, status: str, data: bytes = b"") -> None:
    """Write a frame: a line `status length`, then the data."""
    write(fd, f"{status} {len(data)}\n".encode() + data)

"""Expressions as trees, and the errors of their readers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


class MalformedError(ValueError):
    """A text that is not one mathematical expression."""


class ForeignError(MalformedError):
    """A text with notation that only the library reads, such as an integral."""


class UndecidedError(Exception):
    """Two expressions whose equality could not be decided, for example because a number is too large."""


@dataclass(frozen=True, slots=True)
class Digits:
    """The spelling of a decimal: it may stand for a number with more digits."""

    places: int
    """Digits after the point."""
    significant: int
    """Digits from the first that is not 0."""
    written: int
    """All digits."""


@dataclass(frozen=True, slots=True)
class Node:
    """An expression."""

    kind: str
    """`number`, `symbol`, `word`, `add`, `multiply`, `divide`, `power`, `negative`, `call`, `plus_minus`, `percent`,
    `unit`, `group` (brackets with several members), `list`, `union`, `matrix`, `row` or `relation`."""
    args: tuple[Node, ...] = ()
    name: str = ""
    """Name of a symbol, word, function or unit; both brackets of a group; the signs of a relation with spaces."""
    value: Fraction = Fraction(0)
    """Value of a number."""
    digits: Digits | None = None
    """Spelling of a number with a decimal point."""


def number(value: Fraction | int, digits: Digits | None = None) -> Node:
    """Return a number."""
    return Node("number", value=Fraction(value), digits=digits)


def symbol(name: str) -> Node:
    """Return a symbol."""
    return Node("symbol", name=name)


def call(name: str, *args: Node) -> Node:
    """Return the value of a function."""
    return Node("call", args, name)

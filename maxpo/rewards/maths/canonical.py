"""One text for all spellings of an answer, for a majority vote."""

from __future__ import annotations

from maxpo.rewards.maths.equality import is_name
from maxpo.rewards.maths.nodes import Node, UndecidedError
from maxpo.rewards.maths.values import NoValueError, context, exact, numeric, points, symbols
from maxpo.rewards.maths.words import folded, read_unit

_DIGITS = 40
_SHOWN = 25


def canonical(node: Node) -> str:
    """Return one text for equal expressions, as far as a comparison of values finds out.

    A decimal of 7 or more digits becomes the nearest fraction with a denominator of at most a million. A unit that is
    known is left out.

    Raises:
        UndecidedError: A number is too large.
    """
    if node.kind in ("list", "group", "union", "matrix", "row"):
        members = [canonical(arg) for arg in node.args]
        is_set = node.kind in ("list", "union") or node.name == "\\{\\}"
        return f"{'set' if is_set else node.name or node.kind}({', '.join(sorted(members) if is_set else members)})"
    if node.kind == "relation":
        if node.name == "=" and is_name(node.args[0]):
            return canonical(node.args[1])
        return f"{node.name}({', '.join(map(canonical, node.args))})"
    if node.kind == "unit":
        inner = canonical(node.args[0])
        return inner if read_unit(node.name) is not None else f"{inner} {folded(node.name)}"
    if node.kind == "word" and (len(node.name) > 3 or " " in node.name):
        return folded(node.name)
    try:
        return _value(node)
    except NoValueError:
        return f"{node.kind} {node.name}({', '.join(map(canonical, node.args))})" if node.args else node.name


def _value(node: Node) -> str:
    names = symbols(node)
    if not names and (value := exact(node)) is not None:
        long = node.digits is not None and node.digits.written >= 7
        return str(value.limit_denominator(10**6) if long else value)
    mp = context(_DIGITS)
    values: list[str] = []
    for at in points(names, _DIGITS)[:2]:
        value = numeric(node, at, _DIGITS)
        if abs(value) > mp.mpf(10) ** 1000:
            raise UndecidedError("a number is too large")
        values.append(mp.nstr(value, _SHOWN))
    return f"{','.join(sorted(names))}:{values[0]}" if not names else f"{','.join(sorted(names))}:{' '.join(values)}"

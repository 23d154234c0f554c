"""Decisions about equality, without a computer algebra system.

Rational numbers are compared exactly. Other numbers are compared to 50 digits, which are computed twice with different
precision, so that a difference that is zero is told from a small one. Expressions with symbols are compared at points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from maxpo.rewards.maths.nodes import Digits, Node, UndecidedError, number
from maxpo.rewards.maths.values import NoValueError, context, exact, is_terminating, numeric, points, symbols
from maxpo.rewards.maths.words import Unit, folded, read_unit

_DIGITS = (60, 110)
"""Numbers of digits of the two computations."""
_EQUAL = 45
"""Number of digits in which equal numbers agree."""
_MANY = 30
"""Most members of an unordered list."""


def equal(answer: Node, reference: Node) -> bool:
    """Return True if an answer has the same meaning as the reference.

    Raises:
        UndecidedError: Nobody can tell.
    """
    if reference.kind == "relation":
        return _equal_relation(answer, reference)
    if answer.kind == "relation":
        return _claims(answer, reference)
    answer, reference = _spread(_united(answer)), _spread(_united(reference))
    many = ("list", "group", "union", "matrix")
    if answer.kind in many or reference.kind in many:
        return _equal_many(answer, reference)
    if answer.kind == "word" or reference.kind == "word":
        return _equal_words(answer, reference)
    return _equal_quantities(answer, reference)


# Equations and inequalities.


def _is_equation(node: Node) -> bool:
    return node.kind == "relation" and set(node.name.split()) <= {"=", "~"}


def is_name(node: Node) -> bool:
    """Return True if an expression only names something: x, f(x), P(A), an angle, or words."""
    if node.kind in ("symbol", "word"):
        return node.name not in ("pi", "e", "i", "oo", "emptyset")
    if node.kind == "multiply":
        head, tail = node.args
        return is_name(head) and (is_name(tail) or (head.kind != "multiply" and _is_argument(tail)))
    if node.kind == "power":  # an inverse function
        return node.args[0].kind == "symbol" and is_name(node.args[0]) and exact(node.args[1]) == -1
    if node.kind == "divide":  # a derivative, dy/dx
        return all(is_name(arg) and arg.kind == "multiply" for arg in node.args)
    if node.kind == "group":  # a point, (x, y)
        return node.name == "()" and all(map(is_name, node.args))
    return node.kind == "call" and node.name in ("abs", "prime") and all(map(is_name, node.args))


def _is_argument(node: Node) -> bool:
    return node.kind in ("number", "symbol") or (node.kind == "group" and node.name == "()")


def _claims(answer: Node, reference: Node) -> bool:
    """Return True if an equation or inequality claims the reference and nothing else."""
    signs, members = answer.name.split(), list(answer.args)
    if signs == ["in"]:
        return is_name(members[0]) and equal(members[1], reference)
    if not _is_equation(answer):
        interval = _interval(answer)
        return interval is not None and reference.kind in ("group", "union") and equal(interval, reference)
    rounded = [False, *(sign == "~" for sign in signs)]
    if is_name(members[0]) and not _same_name(members[0], reference):
        del members[0], rounded[0]
    elif len(members) == 2 and is_name(members[1]) and not _same_name(members[1], reference):
        del members[1], rounded[1]
    right = [equal(member, reference) for member in members]
    near = [ok or (about and _near(m, reference)) for m, ok, about in zip(members, right, rounded, strict=True)]
    return any(right) and all(near)


def _same_name(node: Node, reference: Node) -> bool:
    return reference.kind in ("symbol", "word") and node == reference


def _near(node: Node, reference: Node) -> bool:
    """Return True if a decimal after "approximately" is the reference, rounded or cut."""
    literal, value = _literal(node), _number(reference)
    return literal is not None and value is not None and abs(literal[0] - value) < Fraction(10) ** -literal[1].places


def _equal_relation(answer: Node, reference: Node) -> bool:
    signs, members = reference.name.split(), reference.args
    if signs == ["in"]:
        return equal(answer, members[1]) if answer.kind != "relation" else (
            answer.name == "in" and _same(answer.args[0], members[0]) and equal(answer.args[1], members[1])
        )  # fmt: skip
    if answer.kind != "relation":
        if _is_equation(reference) and is_name(members[0]):
            return equal(answer, members[-1])
        interval = _interval(reference)
        return interval is not None and answer.kind in ("group", "union") and equal(answer, interval)
    if _is_equation(reference) and _is_equation(answer):
        return _equal_equations(answer, reference)
    a, r = _interval(answer), _interval(reference)
    if a is not None and r is not None:
        return symbols(answer) == symbols(reference) and equal(a, r)
    return _equal_inequalities(answer, reference)


def _equal_equations(answer: Node, reference: Node) -> bool:
    if is_name(reference.args[0]) and is_name(answer.args[0]):
        if not _same(answer.args[0], reference.args[0]):
            return len(answer.args) == len(reference.args) == 2 and _proportional(answer, reference, signed=False)
        return all(equal(member, reference.args[-1]) for member in answer.args[1:])
    if len(answer.args) != 2 or len(reference.args) != 2:
        return len(answer.args) == len(reference.args) and all(
            map(equal, answer.args, reference.args)
        )  # fmt: skip
    return _proportional(answer, reference, signed=False)


def _equal_inequalities(answer: Node, reference: Node) -> bool:
    a, r = _directed(answer), _directed(reference)
    if a is None or r is None or a.name != r.name or len(a.args) != len(r.args):
        return False
    if len(a.args) == 2:
        return _proportional(a, r, signed=True)
    return all(map(equal, a.args, r.args))


def _directed(node: Node) -> Node | None:
    """Return an inequality with "<" and "<=" only. None: its signs point both ways."""
    signs = node.name.split()
    if set(signs) <= {">", ">="}:
        turned = " ".join({">": "<", ">=": "<="}[sign] for sign in reversed(signs))
        return Node("relation", tuple(reversed(node.args)), turned)
    return node if set(signs) <= {"<", "<="} or signs == ["!="] else None


def _interval(node: Node) -> Node | None:
    """Return the interval of one symbol that an inequality describes, such as (-oo, 3) for x < 3, or None."""
    directed = _directed(node)
    if directed is None or "!=" in node.name:
        return None
    signs, members = directed.name.split(), directed.args
    infinity = Node("symbol", name="oo")
    if len(members) == 2:
        if members[0].kind == "symbol" and not symbols(members[1]):
            return Node("group", (Node("negative", (infinity,)), members[1]), "(" + ("]" if signs[0] == "<=" else ")"))
        if members[1].kind == "symbol" and not symbols(members[0]):
            return Node("group", (members[0], infinity), ("[" if signs[0] == "<=" else "(") + ")")
        return None
    if len(members) != 3 or members[1].kind != "symbol" or symbols(members[0]) or symbols(members[2]):
        return None
    brackets = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
    return Node("group", (members[0], members[2]), brackets)


def _proportional(answer: Node, reference: Node, *, signed: bool) -> bool:
    """Return True if the differences of both sides have a constant ratio, which is positive if `signed`."""
    names = symbols(answer) | symbols(reference)
    if symbols(answer) != symbols(reference) or not names:
        return not names and _same(answer, reference)
    first, second = (Node("add", (n.args[0], Node("negative", (n.args[1],)))) for n in (answer, reference))
    ratios: list[Any] = []
    for at in points(names, _DIGITS[1]):
        try:
            a, b = numeric(first, at, _DIGITS[1]), numeric(second, at, _DIGITS[1])
        except NoValueError:
            continue
        if b == 0 or a == 0:
            return False
        ratios.append(a / b)
    if len(ratios) < 3:
        raise UndecidedError("the equation has values almost nowhere")
    mp = context(_DIGITS[1])
    same = all(abs(ratio - ratios[0]) <= mp.mpf(10) ** -_EQUAL * abs(ratios[0]) for ratio in ratios)
    return same and (not signed or (mp.im(ratios[0]) == 0 and mp.re(ratios[0]) > 0))


def _same(a: Node, b: Node) -> bool:
    return a == b


# Lists, sets, tuples, intervals, unions and matrices.


def _united(node: Node) -> Node:
    """Return a union in place of inequalities of one symbol with "or", such as x < -2 or x > 3."""
    if node.kind != "list" or node.name != "or" or len(symbols(node)) != 1:
        return node
    parts = [_interval(arg) if arg.kind == "relation" else None for arg in node.args]
    known = tuple(part for part in parts if part is not None)
    return Node("union", known) if len(known) == len(parts) else node


def _spread(node: Node) -> Node:
    """Return a list in place of one plus-minus, also within another list, and the real numbers as an interval."""
    if node.kind == "symbol" and node.name == "mathbbR":
        infinity = Node("symbol", name="oo")
        return Node("group", (Node("negative", (infinity,)), infinity), "()")
    if node.kind in ("list", "group") and node.name in ("", "or", "\\{\\}"):
        members = [member for arg in node.args for member in branches(arg)]
        return Node(node.kind, tuple(members), node.name)
    both = branches(node)
    return node if len(both) == 1 else Node("list", tuple(both))


def branches(node: Node) -> list[Node]:
    """Return the two values of an expression with one plus-minus, or the expression alone."""
    if node.kind == "plus_minus":
        a, b = node.args
        return [Node("add", (a, b)), Node("add", (a, Node("negative", (b,))))]
    for position, arg in enumerate(node.args):
        if node.kind in ("group", "matrix", "row", "list"):
            break
        both = branches(arg)
        if len(both) > 1:
            return [replace(node, args=(*node.args[:position], b, *node.args[position + 1 :])) for b in both]
    return [node]


def _equal_many(answer: Node, reference: Node) -> bool:
    a, r = _ordered_name(answer), _ordered_name(reference)
    if a == r == "list":
        return _equal_lists(answer, reference)
    if {a, r} <= {"list", "\\{\\}"}:
        return _unordered(_distinct(answer), _distinct(reference))
    if {a, r} <= {"list", "()", "\\langle\\rangle"}:
        values = [_value_of_name(member) for member in answer.args], [_value_of_name(m) for m in reference.args]
        return len(values[0]) == len(values[1]) and all(map(equal, *values))
    if a != r:
        return False
    if a == "union":
        return _unordered(answer.args, reference.args)
    return len(answer.args) == len(reference.args) and all(map(_equal_member, answer.args, reference.args))


def _equal_member(answer: Node, reference: Node) -> bool:
    if answer.kind == reference.kind == "row":
        return len(answer.args) == len(reference.args) and all(map(equal, answer.args, reference.args))
    return answer.kind != "relation" and equal(answer, reference)


def _ordered_name(node: Node) -> str:
    if node.kind == "group":
        return node.name
    return node.kind


def _value_of_name(node: Node) -> Node:
    return node.args[1] if _is_equation(node) and len(node.args) == 2 and is_name(node.args[0]) else node


def _names_of(node: Node) -> list[Node]:
    """Return the different names of a list of equations, such as x = 1, y = 2."""
    named = [arg.args[0] for arg in node.args if _is_equation(arg) and is_name(arg.args[0])]
    return list(dict.fromkeys(named))


def _equal_lists(answer: Node, reference: Node) -> bool:
    names = _names_of(answer), _names_of(reference)
    if (len(names[0]) > 1) != (len(names[1]) > 1):  # x = 1, y = 2 against 1, 2: in order
        values = [_value_of_name(member) for member in answer.args], [_value_of_name(m) for m in reference.args]
        return len(values[0]) == len(values[1]) and all(map(equal, *values))
    return _unordered(answer.args, reference.args)


def _distinct(node: Node) -> Sequence[Node]:
    members: list[Node] = []
    for arg in map(_value_of_name, node.args):
        if not any(equal(arg, member) for member in members):
            members.append(arg)
    return members


def _unordered(answer: Sequence[Node], reference: Sequence[Node]) -> bool:
    if len(answer) != len(reference):
        return False
    if len(reference) > _MANY:
        return all(map(equal, answer, reference))
    left = list(answer)
    for member in reference:
        found = next((a for a in left if equal(a, member)), None)
        if found is None:
            return False
        left.remove(found)
    return True


# Words, units and numbers.


def _equal_words(answer: Node, reference: Node) -> bool:
    if answer.kind == reference.kind:
        return folded(answer.name) == folded(reference.name)
    word, other = (answer, reference) if answer.kind == "word" else (reference, answer)
    if len(word.name) > 3 or other.kind == "unit" or not symbols(other):
        return False
    return _equal_values(answer, reference)


def _unit(node: Node) -> tuple[Node, str | None]:
    """Return an expression without its unit, and the unit. A unit in the last term of a sum holds for the sum."""
    if node.kind == "unit":
        inner, unit = _unit(node.args[0])
        return inner, node.name if unit is None else f"{unit} {node.name}"
    if node.kind == "negative":
        inner, unit = _unit(node.args[0])
        return Node("negative", (inner,)), unit
    if node.kind == "divide" and node.args[1].kind not in ("unit",):
        inner, unit = _unit(node.args[0])
        return Node("divide", (inner, node.args[1])), unit
    return node, None


def _equal_quantities(answer: Node, reference: Node) -> bool:
    (a, name_a), (r, name_r) = _unit(answer), _unit(reference)
    if (name_a is None) != (name_r is None):  # `5 m` may be a length if the other side has a unit
        (a, name_a), (r, name_r) = _letter_unit(a, name_a), _letter_unit(r, name_r)
    if name_a is None and name_r is None:
        return _equal_percent(a, r)
    units = [read_unit(name) if name is not None else None for name in (name_a, name_r)]
    if any(unit is None and name is not None for unit, name in zip(units, (name_a, name_r), strict=True)):
        return name_a is not None and name_r is not None and folded(name_a) == folded(name_r) and _equal_percent(a, r)
    if units[0] is not None and units[1] is not None:
        return units[0][1] == units[1][1] and _equal_values(_sized(a, units), _sized(r, units[::-1]))
    if a.kind == "percent" or r.kind == "percent":
        return False
    if "degree" in (name_a, name_r) and "pi" in str(r if name_a else a):
        turned = Node("divide", (Node("symbol", name="pi"), number(180)))
        a, r = (Node("multiply", (n, turned)) if name == "degree" else n for n, name in ((a, name_a), (r, name_r)))
    return _equal_percent(a, r)


def _letter_unit(node: Node, name: str | None) -> tuple[Node, str | None]:
    """Return a number beside one letter as a number with a unit, if the letter is one."""
    if name is None and node.kind == "multiply" and node.args[1].kind == "symbol" and not symbols(node.args[0]):
        letter = node.args[1].name
        if read_unit(letter) is not None:
            return node.args[0], letter
    return node, name


def _sized(node: Node, units: Sequence[Unit | None]) -> Node:
    """Return a number in the dimension's first unit if the two units have different sizes."""
    first, second = units
    assert first is not None
    assert second is not None
    return node if first[0] == second[0] else Node("multiply", (node, number(first[0])))


def _equal_percent(answer: Node, reference: Node) -> bool:
    """Return True for equal values. A percent sign may be missing on one side if the number is more than 1."""
    if _equal_values(answer, reference):
        return True
    if (answer.kind == "percent") == (reference.kind == "percent"):
        return False
    a, r = (node.args[0] if node.kind == "percent" else node for node in (answer, reference))
    value = exact(r)
    return value is not None and abs(value) > 1 and _equal_values(a, r)


def _equal_values(answer: Node, reference: Node) -> bool:
    if answer == reference:
        return True
    names = symbols(answer) | symbols(reference)
    if infinite(answer) or infinite(reference):
        return infinite(answer) == infinite(reference)
    if names:
        return _equal_everywhere(answer, reference, names)
    try:
        a, r = exact(answer), exact(reference)
        if a is not None and r is not None:
            return a == r or _rounded(answer, r, reference) or _rounded(reference, a, answer)
        if _equal_at(answer, reference, {}):
            return True
        return _rounded(answer, _number(reference), reference) or _rounded(reference, _number(answer), answer)
    except NoValueError:
        return False


def infinite(node: Node) -> int:
    """Return 1 for infinity, -1 for minus infinity, 2 for the empty set, and 0 for others."""
    if node.kind == "symbol":
        return {"oo": 1, "emptyset": 2, "mathbbR": 3}.get(node.name, 0)
    if node.kind == "negative":
        return -infinite(node.args[0])
    if node.kind == "add" and exact(node.args[0]) == 0:
        return infinite(node.args[1])
    return 0


def _number(node: Node) -> Fraction | None:
    """Return a real value as a fraction, to many digits if it is irrational. None: it is not real."""
    value = exact(node)
    if value is not None:
        return value
    if symbols(node):
        return None
    try:
        computed = numeric(node, {}, _DIGITS[0])
    except NoValueError:
        return None
    mp = context(_DIGITS[0])
    if mp.im(computed) != 0 or abs(computed) > mp.mpf(10) ** 300:
        return None
    return Fraction(int(mp.floor(mp.re(computed) * mp.mpf(10) ** 50)), 10**50)


def _literal(node: Node) -> tuple[Fraction, Digits] | None:
    """Return value and spelling of a decimal with a sign, a power of ten or a percent sign. None: it is no decimal."""
    if node.kind == "number" and node.digits is not None:
        return node.value, node.digits
    if node.kind in ("negative", "percent"):
        inner = _literal(node.args[0])
        if inner is None:
            return None
        value, digits = inner
        return (-value, digits) if node.kind == "negative" else (value / 100, replace(digits, places=digits.places + 2))
    if node.kind == "multiply" and node.args[1].kind == "power" and exact(node.args[1].args[0]) == 10:
        inner, power = _literal(node.args[0]), exact(node.args[1].args[1])
        if inner is not None and power is not None and power.denominator == 1 and abs(power) < 400:
            value, digits = inner
            return value * Fraction(10) ** int(power), replace(digits, places=digits.places - int(power))
    return None


def _rounded(node: Node, value: Fraction | None, other: Node) -> bool:
    """Return True if a decimal is a value with more digits, rounded or cut to its last digit.

    The decimal must have 7 digits, 6 of them significant, and 4 after the point. The value must have no last digit, or
    be a decimal with more digits itself.
    """
    literal, longer = _literal(node), _literal(other)
    if literal is None or value is None:
        return False
    own, digits = literal
    if digits.written < 7 or digits.significant < 6 or digits.places < 4:
        return False
    unit = Fraction(10) ** -digits.places
    if longer is not None:
        return longer[1].places > digits.places and abs(own - value) * 2 <= unit
    if exact(other) is not None and is_terminating(value):
        return False
    cut = 0 <= (value - own) * (1 if value > 0 else -1) < unit
    return (cut or abs(own - value) * 2 <= unit) and not _is_whole(value)


def _is_whole(value: Fraction) -> bool:
    """Return True if a value that was computed to 50 digits is an integer."""
    return abs(value - round(value)) < Fraction(1, 10**45)


def _equal_everywhere(answer: Node, reference: Node, names: Iterable[str]) -> bool:
    """Return True if two expressions are equal at all points where both are real, or at all if they never are."""
    real: list[bool] = []
    other: list[bool] = []
    for at in points(frozenset(names), _DIGITS[1]):
        try:
            a, r = (numeric(node, at, _DIGITS[1]) for node in (answer, reference))
        except NoValueError:
            continue
        mp = context(_DIGITS[1])
        (real if mp.im(a) == 0 and mp.im(r) == 0 else other).append(_close(a, r, mp))
        if real and not real[-1]:
            return False
    counted = real if len(real) >= 2 else real + other
    if not counted:
        return False
    return all(counted)


def _close(a: Any, r: Any, mp: Any) -> bool:
    return abs(a - r) <= mp.mpf(10) ** -_EQUAL * max(abs(a), abs(r))


def _equal_at(answer: Node, reference: Node, at: dict[str, Any]) -> bool:
    """Return True if two numbers agree to many digits, or if their difference shrinks with the precision."""
    differences: list[Any] = []
    for digits in _DIGITS:
        a, r = (numeric(node, at, digits) for node in (answer, reference))
        if _close(a, r, context(digits)):
            return True
        differences.append(abs(a - r))
    mp = context(_DIGITS[0])
    return differences[1] <= differences[0] * mp.mpf(10) ** -30 and differences[0] < mp.mpf(10) ** -30

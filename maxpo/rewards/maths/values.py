"""Values of expressions: exact where they are rational, and to many digits where they are not."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from maxpo.rewards.maths.nodes import Node, UndecidedError

_BITS = 20_000
"""Most bits of an exact number."""
_LOG2 = 1_000_000
"""Largest exponent of two of a number that is computed at all."""
_CONSTANTS = ("pi", "e", "i", "oo", "emptyset")


class NoValueError(Exception):
    """An expression without a value, such as 1/0 or a list."""


def exact(node: Node) -> Fraction | None:
    """Return the value of a rational expression without symbols. None: it is not known to be rational.

    Raises:
        NoValueError: It divides by zero.
    """
    if node.kind == "number":
        return node.value
    if node.kind not in ("add", "multiply", "divide", "negative", "power", "percent"):
        return None
    args = [exact(arg) for arg in node.args]
    if any(arg is None or _bits(arg) > _BITS for arg in args):
        return None
    a, b = args[0], args[-1]
    assert a is not None
    assert b is not None
    if node.kind == "add":
        return a + b
    if node.kind == "multiply":
        return a * b
    if node.kind == "negative":
        return -a
    if node.kind == "percent":
        return a / 100
    if node.kind == "divide":
        if b == 0:
            raise NoValueError("division by zero")
        return a / b
    return _exact_power(a, b)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or _bits(base) * abs(exponent) > _BITS:
        return None
    if base == 0 and exponent <= 0:
        raise NoValueError("zero to a power that is not positive")
    return base ** int(exponent)


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols without a value of their own."""
    if node.kind in ("symbol", "word"):
        return frozenset(_names(node)) - frozenset(_CONSTANTS)
    return frozenset[str]().union(*(symbols(arg) for arg in node.args))


def _names(node: Node) -> list[str]:
    """Return the name of a symbol, or the letters of a short word that may be a product."""
    is_product = node.kind == "word" and len(node.name) <= 3 and node.name.isalpha()
    return list(node.name) if is_product else [node.name]


@cache
def context(digits: int) -> Any:
    """Return an mpmath context of this precision."""
    made: Any = importlib.import_module("mpmath").MPContext()
    made.dps = digits
    return made


def points(names: frozenset[str], digits: int) -> list[Mapping[str, Any]]:
    """Return values for the symbols: four points with positive values, then four with values of both signs."""
    mp, draw = context(digits), random.Random("maxpo".join(sorted(names)))
    made: list[Mapping[str, Any]] = []
    for position in range(8):
        low = 0.2 if position < 4 else -2.8
        made.append({name: mp.mpf(draw.uniform(low, 3.1)) for name in sorted(names)})
    return made


def numeric(node: Node, at: Mapping[str, Any], digits: int) -> Any:
    """Return the value of an expression to this number of digits.

    Args:
        node: The expression.
        at: Values of its symbols.
        digits: Number of digits.

    Raises:
        NoValueError: The expression has no value.
        UndecidedError: A number on the way is too large.
    """
    mp = context(digits)
    try:
        return _Evaluation(mp, at).value(node)
    except (ZeroDivisionError, ValueError, TypeError) as error:
        raise NoValueError(str(error)) from error
    except (OverflowError, MemoryError, mp.NoConvergence) as error:
        raise UndecidedError(str(error)) from error


class _Evaluation:
    """Evaluation of an expression at a point."""

    def __init__(self, mp: Any, at: Mapping[str, Any]) -> None:
        self._mp, self._at = mp, at

    def value(self, node: Node) -> Any:
        """Return the value of an expression."""
        kind = node.kind
        if kind == "number":
            return self._mp.mpf(node.value.numerator) / node.value.denominator
        if kind in ("symbol", "word"):
            return self._mp.fprod(self._named(name) for name in _names(node))
        if kind == "call":
            return self._call(node.name, [self.value(arg) for arg in node.args])
        if kind == "unit" and node.name.startswith("deg"):  # of an angle in a function
            return self.value(node.args[0]) * self._mp.pi / 180
        if kind not in ("add", "multiply", "divide", "negative", "power", "percent"):
            raise NoValueError(f"{kind} has no value")
        args = [self.value(arg) for arg in node.args]
        a, b = args[0], args[-1]
        if kind == "power":
            return self._power(a, b)
        if kind == "divide":
            return a / b
        if kind == "add":
            return a + b
        if kind == "multiply":
            return a * b
        return -a if kind == "negative" else a / 100

    def _named(self, name: str) -> Any:
        mp = self._mp
        constants = {"pi": mp.pi, "e": mp.e, "i": mp.j}
        if name in constants:
            return +constants[name]
        if name in ("oo", "emptyset"):
            raise NoValueError(name)
        return self._at[name]

    def _power(self, base: Any, exponent: Any) -> Any:
        if base != 0 and abs(exponent) * abs(self._mp.log(abs(base), 2)) > _LOG2:
            raise UndecidedError("a power is too large")
        if base == 0 and self._mp.re(exponent) <= 0:
            raise NoValueError("zero to a power that is not positive")
        return base**exponent

    def _call(self, name: str, args: list[Any]) -> Any:
        if any(abs(arg) > 2**64 and self._mp.log(abs(arg), 2) > 300 for arg in args):
            raise UndecidedError("an argument is too large")
        function = self._functions().get(name)
        if function is None:
            raise NoValueError(name)
        return function(*args)

    def _functions(self) -> Mapping[str, Callable[..., Any]]:
        mp = self._mp
        own: dict[str, Callable[..., Any]] = {
            "root": self._root,
            "ln": mp.log,
            "log": self._log,
            "lg": mp.log10,
            "log_base": self._log_base,
            "exp": self._exp,
            "abs": abs,
            "factorial": self._factorial,
            "binomial": self._binomial,
            "floor": mp.floor,
            "ceil": mp.ceil,
        }
        trigonometry = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")
        for name in trigonometry:
            own[name] = getattr(mp, name)
            own[f"a{name}"] = getattr(mp, f"a{name}")
        return own

    def _root(self, x: Any, degree: Any) -> Any:
        odd = degree == int(degree.real) and int(degree.real) % 2 == 1
        if odd and self._mp.im(x) == 0 and x < 0:
            return -self._power(-x, 1 / degree)
        return self._power(x, 1 / degree)

    def _log(self, x: Any) -> Any:
        # The base of a plain `log` is not known, so it is a number of its own.
        return self._mp.log(x) / self._mp.mpf("1.31607401295249246081921890179")

    def _log_base(self, base: Any, x: Any) -> Any:
        return self._mp.log(x) / self._mp.log(base)

    def _exp(self, x: Any) -> Any:
        return self._power(self._mp.e, x)

    def _factorial(self, x: Any) -> Any:
        if abs(x) > 100_000:
            raise UndecidedError("a factorial is too large")
        return self._mp.factorial(x)

    def _binomial(self, n: Any, k: Any) -> Any:
        if abs(n) > 100_000:
            raise UndecidedError("a binomial is too large")
        return self._mp.binomial(n, k)


def is_terminating(value: Fraction) -> bool:
    """Return True if a number has finitely many digits after the point."""
    rest = value.denominator
    while rest % 2 == 0:
        rest //= 2
    while rest % 5 == 0:
        rest //= 5
    return rest == 1

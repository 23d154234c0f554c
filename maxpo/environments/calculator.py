"""The environment that lends the policy a calculator."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction

from maxpo.environments.base import Step

LONGEST = 200
"""Characters of the longest expression that is read."""
_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


class Calculator:
    """Computes what a turn asks for, `<calc>12 * 34</calc>`, and gives the result back. A turn without is the last one.

    Only the last request of a turn is answered. With `closing` in `environment.stop` the turn ends there by itself.
    It gives no reward and has no opinion about success: let a verifier judge the last turn. Parts: `calls`, and of
    these `errors`.
    """

    def __init__(self, *, opening: str = "<calc>", closing: str = "</calc>", reply: str = "{value}") -> None:
        """Set up how a request begins and ends, and how its result is written."""
        self._opening, self._closing, self._reply = opening, closing, reply

    def reset(self, prompt: str, reference: object, seed: int) -> None:
        """Do nothing, because a calculator has no state."""

    def step(self, completion: str) -> Step:
        """Return the result of the request, or the end."""
        _, opened, rest = completion.rpartition(self._opening)
        expression, closed, _ = rest.partition(self._closing)
        if not opened or not closed:
            return Step(done=True, parts={"calls": 0.0, "errors": 0.0})
        value = calculate(expression)
        parts = {"calls": 1.0, "errors": float(value is None)}
        return Step(observation=self._reply.replace("{value}", "error" if value is None else value), parts=parts)


def calculate(expression: str) -> str | None:
    """Return the value of an expression of decimal numbers, + - * / and parentheses, or None if it has none.

    Exact, and written as a whole number or, if it is none, as a decimal of 10 significant digits.
    """
    if len(expression) > LONGEST:
        return None
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case _:
            raise ValueError("not arithmetic")

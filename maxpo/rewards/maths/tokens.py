r"""From a text in one spelling (`maxpo.rewards.maths.spelling.plain`) to tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from maxpo.rewards.maths.nodes import Digits, MalformedError, Node, number

_EXPONENT = 5000
"""Largest exponent of a number in e-notation."""
_TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|textsf|mathrm|mbox|operatorname\*?)\s*"
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_TOKEN = re.compile(
    rf"(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*(?:\{{[0-9]+\}}|[0-9]))"
    rf"|(?P<ellipsis>[0-9]*\.[0-9]+\s*(?:\.\.\.|\\l?dots|\\cdots))"
    rf"|(?P<thousands>[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+(?:\.[0-9]+)?(?![0-9]|,[0-9]))"
    rf"|(?P<number>{_NUMBER}(?:[eE][-+]?[0-9]+(?![0-9.A-Za-z]))?)"
    rf"|{_TEXT}\{{(?P<text>[^{{}}\\]*)\}}|{_TEXT}(?P<roman>[A-Za-z])(?![A-Za-z])"
    r"|\\begin\s*\{(?P<matrix>[bpB]?matrix|array)\}(?:\s*\{[lcr|]*\})?|(?P<end>\\end\s*\{[a-z]*\*?\})"
    r"|(?P<command>\\[A-Za-z]+|\\.)|(?P<letters>[A-Za-z]+)|(?P<sign>[^\s])|(?P<space>\s+)"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token."""

    kind: str
    """`number`, `letters`, `word` (of a text), `matrix`, `end`, or `sign` (a command or a character)."""
    text: str
    node: Node | None = None
    """A number."""
    spaced: bool = False
    """True if white space comes before."""


def tokens(text: str, *, thousands: bool = True) -> list[Token]:
    """Return the tokens of a text.

    Args:
        text: Text in one spelling.
        thousands: True if commas between groups of three digits belong to one number. Within brackets they do so only
            if other commas are followed by a space.

    Raises:
        MalformedError: A number is too large, or its digits go on without a rule.
    """
    found: list[Token] = []
    position, depth, spaced = 0, 0, False
    several = re.search(r",\s", text) is not None
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None
        kind = match.lastgroup or ""
        if kind == "thousands" and not (thousands and (depth == 0 or several)):
            match = re.compile(_NUMBER).match(text, position)
            assert match is not None
            kind = "number"
        position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind in ("text", "roman"):
            found += _words(match[kind])
            spaced = False
            continue
        token = _token(kind, match[0] if kind != "matrix" else match["matrix"], spaced)
        depth += token.text in ("(", "[", "\\{", "\\langle")
        depth -= token.text in (")", "]", "\\}", "\\rangle")
        found.append(token)
        spaced = False
    return found


def _words(text: str) -> list[Token]:
    """Return the tokens of a text, whose letters are words."""
    return [Token("word" if t.kind == "letters" else t.kind, t.text, t.node, spaced=True) for t in tokens(text)]


def _token(kind: str, text: str, spaced: bool) -> Token:
    if kind == "repeating":
        return Token("number", text, _repeating(text), spaced)
    if kind == "ellipsis":
        return Token("number", text, _endless(text), spaced)
    if kind in ("thousands", "number"):
        return Token("number", text, _number(text.replace(",", "")), spaced)
    return Token(kind if kind in ("letters", "matrix", "end") else "sign", text, None, spaced)


def _number(text: str) -> Node:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent[:9])) > _EXPONENT:
        raise MalformedError(f"{text[:80]} is too large")
    whole, point, places = mantissa.partition(".")
    value = Fraction(int(whole + places or "0"), 10 ** len(places)) * Fraction(10) ** int(exponent or 0)
    if not point or not places:
        return number(value)
    significant = len((whole + places).lstrip("0"))
    return number(value, Digits(len(places) - int(exponent or 0), significant, len(whole + places)))


def _repeating(text: str) -> Node:
    r"""Return the value of `0.1\overline{6}`."""
    head, _, period = text.replace("{", "").replace("}", "").partition("\\")
    whole, _, places = head.partition(".")
    period = re.sub("[^0-9]", "", period)
    start = Fraction(int(whole + places or "0"), 10 ** len(places))
    return number(start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places)))


def _endless(text: str) -> Node:
    """Return the value of `0.333...`: its last digits must repeat three times.

    Raises:
        MalformedError: They do not.
    """
    match = re.fullmatch(r"([0-9]*)\.([0-9]*?)([0-9]+?)\3\3+[^0-9]*", text)
    if match is None:
        raise MalformedError(f"{text[:80]} does not say how it goes on")
    return _repeating(f"{match[1]}.{match[2]}\\overline{{{match[3]}}}")

"""The verifier for mathematical answers, exact where it can be, with math-verify for the notation that remains.

The name `math.py` would hide the standard library's `math` within `maxpo.rewards`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from maxpo.rewards.base import Score
from maxpo.rewards.maths import library
from maxpo.rewards.maths.canonical import canonical
from maxpo.rewards.maths.equality import branches, equal, infinite
from maxpo.rewards.maths.grammar import read
from maxpo.rewards.maths.nodes import ForeignError, MalformedError, Node, UndecidedError
from maxpo.rewards.maths.spelling import plain
from maxpo.rewards.maths.values import NoValueError, numeric, symbols
from maxpo.rewards.maths.words import folded
from maxpo.rewards.references import alternatives
from maxpo.rewards.verifiers.boxed import has_box, last_boxed

_LONGEST_REFERENCE = 2000
"""Most characters of a reference. The limit is higher than for an answer, because references are trusted."""
_DEEPEST = 11
"""Deepest nesting of brackets, including those of the box."""
_PHRASE = re.compile(r"answer(?:[^.\n:]{0,60}?\bis\b)?\s*:?[\s*:]*(?:is\b)?\s*", re.IGNORECASE)
_CLAIMED = re.compile(
    r"\$\$?(?P<dollars>[^$]+)\$|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]|(?P<bare>[^\n]+?)"
    r"(?=\.?\s*(?:\n|$)|\.\s|,\s+[a-z]|\s+(?:because|since|which|so|as|when|where)\b)",
    re.DOTALL,
)
_TIME = re.compile(r"[0-9]+(?::[0-9]+)*(?: ?[ap]\.? ?m\.?|:[0-9]+)")
_WORDS = re.compile(r"[A-Za-z0-9 .,:;'/()&!?-]*[A-Za-z]{3}[A-Za-z0-9 .,:;'/()&!?-]*")
_MARKED = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class _Expression:
    """An answer or a reference."""

    text: str
    """Content in one spelling and one case, for answers that are words."""
    source: str
    """Content as it was written."""
    node: Node | None
    """The expression. None: it is text, or only the library may read it."""
    foreign: bool
    """True if only the library may read it."""


def math_answer(text: str, reference: object, *, boxed: bool = True, longest: int = 300) -> Score:
    r"""Return reward 1 if the last boxed answer equals the reference, otherwise 0.

    Equal are 1/2, 0.5 and `\frac12`, sets in any order, intervals, equations, and expressions of equal value at all
    points. Numbers are compared exactly, and a decimal of 7 or more digits may be rounded. A known unit may be missing
    on one side, every other word counts. All members of a chain such as 2+3=5 must equal the reference.

    Brackets nested more than 10 deep are not read, because the library's time doubles with each level. At most
    `longest` characters are read. The library has no time limit here. The process of an answer that takes too long is
    killed.

    Args:
        text: Any text.
        reference: LaTeX, plain text or a number, with or without dollar signs or a box; or a list of alternatives.
        boxed: True if only an answer in `\boxed{}` counts. If False and the text has no box, an answer after the words
            "answer is" or "answer:" within the last `longest` characters counts too.
        longest: Most characters of a box. A longer box is not read.

    Returns:
        The reward, and the part `format`: 1 if an answer could be read, otherwise 0. If math-verify decided, and not
        MaxPO itself, the part `library` is 1.

    Raises:
        ValueError: The reference cannot be read.
        UndecidedError: Nobody can tell whether the answer is right.
    """
    golds = [_gold(gold) for gold in alternatives("math", reference)]
    content = _content(text, boxed, longest)
    answer = None if content is None else _expression(content)
    if answer is None:
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    undecided: UndecidedError | None = None
    used = readable = right = False
    for gold in golds:
        try:
            verdict, by_library = _verdict(answer, gold)
        except UndecidedError as error:
            undecided = error
            continue
        used |= by_library
        readable |= verdict is not None
        right |= verdict is True
    if undecided is not None and not right:
        raise undecided
    parts = {"format": float(readable)} | ({"library": 1.0} if used else {})
    return Score(reward=float(right), success=right, parts=parts)


def answer(text: str, *, boxed: bool = True, longest: int = 300) -> str | None:
    r"""Return the answer in one spelling, for `maj@n`, or None if none could be read.

    1/2, `\frac12`, 0.5 and 3/6 give the same text, and so do sets in any order, x+1 and 1+x, or 2+3 and 5. An answer
    that only math-verify reads is taken as it is written, because its work has no bound.
    """
    content = _content(text, boxed, longest)
    found = None if content is None else _expression(content)
    if found is None or (found.node is None and not found.foreign and not _is_text(found.text)):
        return None
    try:
        return found.text if found.node is None else canonical(found.node)
    except UndecidedError:
        return found.text


def only_library_reads(reference: object) -> bool:
    """Return True if a reference, or one of its alternatives, has notation that only math-verify reads.

    Raises:
        ValueError: The reference cannot be read.
    """
    return any([_gold(gold).foreign for gold in alternatives("math", reference)])


def _content(text: str, boxed: bool, longest: int) -> str | None:
    """Return the answer as it is written. None: there is none, or it is too deep."""
    content = last_boxed(text, longest)
    if content is None and not boxed and not has_box(text):
        content = _claimed(text[-longest:])
    return content if content is not None and _depth(content) < _DEEPEST else None


def _claimed(tail: str) -> str | None:
    """Return what follows the last "answer is" or "answer:"."""
    phrase = None
    for found in _PHRASE.finditer(tail):
        phrase = found
    claimed = _CLAIMED.match(tail, phrase.end()) if phrase is not None else None
    return None if claimed is None else claimed[claimed.lastgroup or "bare"]


def _depth(text: str) -> int:
    """Return the depth of nested brackets of any kind, even if they do not match."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _expression(content: str) -> _Expression | None:
    """Return an expression. None: there is nothing visible, or it has characters of other scripts or none."""
    spelled = plain(content)
    if not spelled or not spelled.isprintable() or not re.sub("[\u20ac\u00a3\u00a5\u20b9]", "", spelled).isascii():
        return None
    folded_text = re.sub(" ?: ?", ":", folded(" ".join(_MARKED.sub(r"\1", spelled).split()))).rstrip(".")
    node, foreign = None, False
    try:
        node = read(content)
    except ForeignError:
        foreign = True
    except MalformedError:
        pass
    return _Expression(folded_text, content, node, foreign)


def _is_text(text: str) -> bool:
    """Return True if a text is words or a time, so that it may be compared letter by letter."""
    return _WORDS.fullmatch(text) is not None or _TIME.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _gold(reference: str) -> _Expression:
    """Return a reference, cached for the N answers of a group and for later epochs.

    Raises:
        ValueError: The reference cannot be read.
    """
    content = last_boxed(reference, _LONGEST_REFERENCE) if has_box(reference) else reference
    gold = _expression(content) if content is not None and len(content) <= _LONGEST_REFERENCE else None
    if gold is None or not _makes_sense(gold):
        raise ValueError(f"math: the reference must be LaTeX or a number, got {reference[:80]!r}")
    return gold


def _makes_sense(gold: _Expression) -> bool:
    """Return True if a reference can be compared: it is text, the library reads it, or all its numbers have values."""
    try:
        if gold.foreign:
            _sympy(gold)
        return _has_value(gold.node) if gold.node is not None else gold.foreign or _is_text(gold.text)
    except (MalformedError, UndecidedError, NoValueError):
        return False


def _has_value(node: Node) -> bool:
    if node.kind in ("unit", "relation", "list", "group", "union", "matrix", "row"):
        return all(map(_has_value, node.args))
    if len(both := branches(node)) > 1:
        return all(map(_has_value, both))
    if not infinite(node) and node.kind != "word" and not symbols(node):
        numeric(node, {}, 15)
    return True


def _verdict(answer: _Expression, gold: _Expression) -> tuple[bool | None, bool]:
    """Return True if an answer is right, None if it cannot be read; and True if the library decided."""
    if answer.text == gold.text and (answer.node is None or gold.node is None):
        return True, False
    if answer.foreign and (members := _members(answer.source)):
        return _claims(members, gold), True
    if answer.foreign or gold.foreign:
        try:
            return library.equal(_sympy(answer), _sympy(gold)), True
        except MalformedError:
            return None, True
    if answer.node is None:
        return (False if _is_text(answer.text) else None), False
    if gold.node is None:
        return False, False
    if equal(answer.node, gold.node):
        return True, False
    if gold.node.kind == "list" and re.search(",[0-9]{3}", answer.source):
        return _without_thousands(answer.source, gold.node), False
    return False, False


def _members(source: str) -> list[str]:
    """Return the members of an equation, outside of braces. Empty if it is none."""
    members, depth = [""], 0
    for character in source:
        depth += (character == "{") - (character == "}")
        if character == "=" and depth == 0:
            members.append("")
        else:
            members[-1] += character
    return members if len(members) > 1 else []


def _claims(members: list[str], gold: _Expression) -> bool:
    r"""Return True if all members of an equation are right. The first may be a name, such as `\det(A)`."""
    first, *others = map(_expression, members)
    if first is None or not all(other is not None and _verdict(other, gold)[0] for other in others):
        return False
    try:
        named = first.foreign and not library.is_number(_sympy(first))
    except MalformedError:
        named = True
    return named or _verdict(first, gold)[0] is True


def _without_thousands(source: str, gold: Node) -> bool:
    """Return True if 100,200 is right as a list of two numbers."""
    try:
        return equal(read(source, thousands=False), gold)
    except MalformedError:
        return False


def _sympy(expression: _Expression) -> Any:
    return library.parse(expression.source)

r"""The last number of free text, if it stands alone there.

The number may be written as `42`, `-1.5`, `1,234`, `2e3`, `1.5 \times 10^3`, `3/4`, `\frac{3}{4}`, `2 1/2` or `50%`,
and with a word such as "million". A number that is part of a larger expression, such as 3 in `x^3` or `5-3`, is none.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

from maxpo.rewards.maths.grammar import read
from maxpo.rewards.maths.nodes import MalformedError, Node, number
from maxpo.rewards.maths.spelling import one_to_one
from maxpo.rewards.maths.values import NoValueError, exact
from maxpo.rewards.maths.words import MULTIPLIERS, read_unit

_LONGEST = 64
"""Most characters of a number. A longer number is not read."""
_UNITS = 8
"""Most numbers at the end of a text that are looked at, since the last ones may be powers of units."""
_WINDOW = 80
"""Characters before and after a number that are looked at."""
_DIGITS = re.compile(r"(?:[0-9]++(?:,[0-9]++)*+(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?")
_GROUPS = re.compile(r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})++|[0-9]++)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?")
_PLAIN = r"(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?<![0-9.,])(?P<number>"
    rf"(?:{_PLAIN}\s*(?:\\times|\\cdot|[*xX])\s*)?10\s*(?:\^|\*\*)\s*[{{(]?\s*-?[0-9]+"
    rf"|(?:[0-9]+\s*)?\\[dtc]?frac\s*(?:\{{\s*-?[0-9]+\s*\}}\s*\{{\s*[0-9]+|[0-9][0-9])"
    rf"|(?:[0-9]+\s+)?[0-9]+\s*/\s*[0-9]+"
    rf"|{_PLAIN}(?:[eE][-+]?[0-9]+)?"
    r")$"
)
_SIGN = re.compile(r"(?P<before>.*?)(?P<sign>[-+])(?P<space>\s?)(?:\\?\$|\u20ac|\u00a3)?$", re.DOTALL)
_NEGATIVE = re.compile(r"\b(?:negative|minus)\s+(?:\\?\$)?$", re.IGNORECASE)
_DECORATION = (
    "(?:boxed|fbox|text|textbf|textit|mathbf|mathrm|bf|approx|sim|q?quad|displaystyle|left|[rR]ightarrow|implies"
    "|therefore)"
)
_PART_BEFORE = re.compile(
    r"[\d)}\]][\s$]*(?:[*+/^<>-]|\*\*)\s*[({$]*$"  # an operator after a number
    r"|(?<![A-Za-z<])[A-Za-z]\s*[*+/^<>-]\s*[({]*$"  # or after a symbol
    r"|(?:[/^]|(?<!_)_)\s*[({]*$"
    rf"|\\(?!{_DECORATION}(?![A-Za-z]))[A-Za-z]+\s*(?:\[[^\]]*\]\s*)?(?:\{{[^{{}}]*\}}\s*)?[{{(]?\s*$"  # \sqrt{2}
    r"|[A-Za-z0-9]\($|(?<![A-Za-z])(?:sqrt|log|ln|sin|cos|tan|exp)\s*[({]?$"
    r"|(?<!\bRs)(?<!\bUSD)(?<!\bUS)(?<!\bEUR)[A-Za-z0-9]$|[A-Za-z]-$|[0-9][.:']$"
    r"|[0-9]\s*(?:x|X)\s*$"
    r"|\b(?:plus|minus|times|over|by|half|third|quarter|twice|double|triple|not|than|between)\s+"
    r"(?:of\s+|[0-9.,$]+\s+and\s+)?\$?$"
    r"|[0-9][^\n]{0,8}\bor\s+\$?$",
    re.IGNORECASE,
)
_UNIT_COMMANDS = (
    r"(?:text|textbf|mathrm|mbox|operatorname|q?quad|circ|degree|right|[rR]ightarrow|approx|[%$)\],;:! \\}])"
)
_PART_AFTER = re.compile(
    r"\s*(?:\^(?!\s*\{?\s*\\circ)|/\s*(?:[A-Za-z](?![A-Za-z])|[({\\])|\*+[A-Za-z({\\])"
    rf"|\s*\\(?!{_UNIT_COMMANDS})"
    r"|\s*[-+]\s*(?:[b-zB-HJ-Z](?![A-Za-z])|[({\\])"
    r"|!+\s*(?:\$|\}|\\)|_(?!_)|\([A-Za-z0-9]+\s*[-+*/)]"
    r"|\s+(?:squared|cubed|factorial)\b|:[0-9]|\s*\u2030|\]\s*\{"
)
_MULTIPLIER = re.compile(r"[\s~-]*(?:\\text\s*\{\s*)?(?P<word>[A-Za-z]+)\b")
_HALVES = re.compile(r"\s+and\s+(?:a|one)[\s-]+(?P<part>half|third|quarter|fourth|fifth|sixth|eighth|tenth)\b")
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PLURALS = {"halves": 2} | {f"{part}s": value for part, value in _PARTS.items() if part != "half"}
_PERCENT = re.compile(r"\s*(?:\\?%|(?:\\text\s*\{\s*)?(?:percent|pct)\b)")
_RAISED_UNIT = re.compile(r"[0-9}/]\s*(?:\\?(?:text|mathrm)\s*\{\s*)?(?P<unit>[A-Za-z]+)\s*\}?\s*\^\s*\{?\s*-?$")
_ATTACHED = re.compile(r"[A-Za-z]+")


def last_number(text: str) -> Node | None:
    """Return the last number of a text: a number, or a number of percent. None: there is none that stands alone."""
    text = one_to_one(text)
    found = deque(_DIGITS.finditer(text), maxlen=_UNITS)
    while found and _is_power_of_unit(text[max(0, found[-1].start() - _WINDOW) : found[-1].start()]):
        found.pop()
    if not found or found[-1].end() - found[-1].start() > _LONGEST:
        return None
    last = found[-1]
    start, end = last.span()
    if _GROUPS.fullmatch(last[0]) is None:  # a list, such as 3,4
        if re.search(r"[A-Za-z0-9]\($", text[max(0, start - 2) : start]):
            return None  # of a function, such as C(5,2)
        start = start + last[0].rfind(",") + 1
        window = ""
    else:
        window = text[max(0, start - _WINDOW) : start]
    match = _NUMBER.search(window + text[start:end])
    if match is None:
        return None
    head, tail = (window + text[start:end])[: match.start()], text[end : end + _WINDOW]
    written = match["number"]
    closing = "}" * (written.count("{") - written.count("}")) + ")" * (written.count("(") - written.count(")"))
    if closing:
        stripped = tail.lstrip()
        if not stripped.startswith(closing):
            return None
        written, tail = written + closing, stripped[len(closing) :]
    if re.search(r"[0-9] $", head) and re.match(r"[0-9]{3}(?![0-9])", written):
        return None  # 1 000 or two numbers
    head, negative = _sign(head)
    if head.endswith("|") and tail.startswith("|"):
        return None
    if negative is None or _PART_BEFORE.search(head) or _PART_AFTER.match(tail):
        return None
    return _value(written, negative, tail)


def _is_power_of_unit(head: str) -> bool:
    """Return True if a number after this text is the power of a unit, as in `5 cm^2`."""
    unit = _RAISED_UNIT.search(head)
    return unit is not None and read_unit(unit["unit"]) is not None


def _sign(head: str) -> tuple[str, bool | None]:
    """Return the text before a sign, and True if the number is negative. None: the sign is an operator."""
    if (word := _NEGATIVE.search(head)) is not None:
        return head[: word.start()], True if not re.search(r"[\d)}]\s*$", head[: word.start()]) else None
    sign = _SIGN.fullmatch(head)
    if sign is None:
        return head, False
    before = sign["before"]
    if before.endswith(("-", "+")):
        return before, None
    if sign["space"] and (not before.strip(" ") or before.rstrip(" ").endswith("\n")):
        return before, False  # a list of points
    if re.search(r"[\d)}\]A-Za-z]$|(?<![A-Za-z])[A-Za-z]\s*$|[\d)}\]$]\s*$", before) and not before.endswith("$"):
        return before, None
    return before, sign["sign"] == "-"


def _value(written: str, negative: bool, tail: str) -> Node | None:
    try:
        value = exact(read(written))
    except (MalformedError, NoValueError):
        return None
    if value is None:
        return None
    attached = _ATTACHED.match(tail)
    if attached is not None and attached[0] not in ("st", "nd", "rd", "th", "k", "K") and not _is_unit(attached[0]):
        return None
    scaled = _scaled(value, tail)
    if scaled is None:
        return None
    value, tail = scaled
    node = number(-value if negative else value)
    return Node("percent", (node,)) if _PERCENT.match(tail) else node


def _is_unit(word: str) -> bool:
    return word in MULTIPLIERS or read_unit(word) is not None or word in ("percent", "pct")


def _scaled(value: Fraction, tail: str) -> tuple[Fraction, str] | None:
    """Return the number times the words that follow it, and what comes after. None: a symbol follows."""
    if tail[:1] in ("k", "K") and not tail[1:2].isalpha():
        return value * 1000, tail[1:]
    if (half := _HALVES.match(tail)) is not None:
        value, tail = value + Fraction(1, _PARTS[half["part"]]), tail[half.end() :]
    while (word := _MULTIPLIER.match(tail)) is not None:
        text = word["word"].lower()
        if text in MULTIPLIERS and (len(text) > 3 or word["word"] in ("bn", "mn")):
            value *= MULTIPLIERS[text]
        elif text in _PLURALS:
            value /= _PLURALS[text]
        elif len(text) == 1 and text not in ("a", "i") and not _is_unit(word["word"]) and tail[0] not in "-~":
            return None
        else:
            break
        tail = tail[word.end() :]
    return value, tail

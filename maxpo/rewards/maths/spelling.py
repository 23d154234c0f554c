r"""Spellings of signs: Unicode and LaTeX variants become one spelling, and decoration is removed."""

from __future__ import annotations

import re
from collections.abc import Callable

_SIGNS = {
    "-": "\u2212\u2013\u2014\u2010\u2011\u2012\ufe63\uff0d",
    "+": "\uff0b",
    " \\times ": "\u00d7\u22c5\u00b7\u2219\u2217",
    "/": "\u00f7\u2044\u2215",
    " ": "\u00a0\u2009\u202f\u2007\u2002\u2003\u200a\t\n\r",
    "\\sqrt ": "\u221a",
    "\\sqrt[3] ": "\u221b",
    "\\pi ": "\u03c0",
    "\\infty ": "\u221e",
    "\\le ": "\u2264\u2a7d",
    "\\ge ": "\u2265\u2a7e",
    "\\ne ": "\u2260",
    "\\in ": "\u2208",
    "\\cup ": "\u222a",
    "\\emptyset ": "\u2205",
    "^\\circ ": "\u00b0\u00ba",
    "\\pm ": "\u00b1",
    "\\approx ": "\u2248\u2243",
    "\\mathbb{R}": "\u211d",
    "'": "\u2019\u2032",
    "\\theta ": "\u03b8",
    "\\alpha ": "\u03b1",
    "\\beta ": "\u03b2",
    "\\gamma ": "\u03b3",
    "\\lambda ": "\u03bb",
    "\\phi ": "\u03c6",
    "\\omega ": "\u03c9",
    "<": "\uff1c",
    "=": "\uff1d",
    "%": "\uff05",
    "(": "\uff08",
    ")": "\uff09",
    ",": "\uff0c",
    "\\langle ": "\u27e8",
    "\\rangle ": "\u27e9",
}
_TABLE: dict[int, str] = {ord(sign): spelling for spelling, signs in _SIGNS.items() for sign in signs}
_TABLE.update({ord(sign): f"\\frac{{{n}}}{{{d}}}" for sign, n, d in (
    ("\u00bd", 1, 2), ("\u2153", 1, 3), ("\u2154", 2, 3), ("\u00bc", 1, 4), ("\u00be", 3, 4), ("\u2155", 1, 5),
    ("\u2156", 2, 5), ("\u2157", 3, 5), ("\u2158", 4, 5), ("\u2159", 1, 6), ("\u215a", 5, 6), ("\u215b", 1, 8),
    ("\u215c", 3, 8), ("\u215d", 5, 8), ("\u215e", 7, 8),
)})  # fmt: skip
_CHARACTERS = {code: spelling for code, spelling in _TABLE.items() if code > 127}
_RAISED = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a\u207f", "0123456789-+n"
)
_LOWERED = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789")
_RAISED_RUN = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
_LOWERED_RUN = re.compile("[\u2080-\u2089]+")
_NARROW = re.compile(r"(?<![0-9.,\\])([0-9]{1,3})((?:(?:\\,|\\ |\{,\}|,?\\!|[\u2009\u202f\u00a0])[0-9]{3})+)(?![0-9])")
"""Groups of digits, separated by narrow spaces or by commas that LaTeX sets without a space."""
_COMMANDS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\s*\.?(?=\s|$)", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])", ""),
    (r"\\(?:q?quad|hspace\{[^{}]*\}|[,;:> ])|~", " "),
    (r"\\!|\{\}", ""),
    (r"\{,\}", ","),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
    (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
    (r"\\neq(?![A-Za-z])", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"\\(?:cdot|ast|times)(?![A-Za-z])", " * "),
    (r"\*\*", "^"),
    (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\(?:lbrace|lbrack|lparen|rbrace|rbrack|rparen|[lr]vert|vert|mid)(?![A-Za-z])", lambda m: _BRACKETS[m[0]]),
    (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
    (r"\\(?:degree)(?![A-Za-z])", r"^\\circ "),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", r" \\degree "),
    (r"\\(?:boldsymbol|mathbf|bm|mathit|mathsf|mathcal)\s*\{([^{}]*)\}", r"{\1}"),
    (r"\\(?:imath)(?![A-Za-z])", "i"),
    (r"\\(?:approx|simeq|sim|thickapprox|doteq)(?![A-Za-z])", r"\\approx "),
    (r"\\(?:lfloor)(?![A-Za-z])", r"\\lfloor "),
)  # fmt: skip
_BRACKETS = {
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]", "\\lparen": "(", "\\rparen": ")",
    "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|",
}  # fmt: skip
_UNIT = re.compile(r"\\(?:mathrm|text)\s*\{[^{}]*(?:\{-?[0-9]\}[^{}]*)+\}")
"""A unit with a raised number in braces, such as `\\mathrm{m s^{-2}}`."""
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _COMMANDS]
_SPECIAL = re.compile(r"[\\{}~*<>!^]")
_WRAPPED = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))


def one_to_one(text: str) -> str:
    """Return the text with one spelling for Unicode signs. Commands, lines and decoration stay as they are."""
    text = _NARROW.sub(lambda groups: groups[1] + re.sub("[^0-9]", "", groups[2]), text)
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
    return text.translate(_CHARACTERS)


def plain(text: str) -> str:
    """Return the text with one spelling for each sign, without decoration around it."""
    text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
    text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
    text = _NARROW.sub(lambda groups: groups[1] + re.sub("[^0-9]", "", groups[2]), text)
    text = unwrapped(text.translate(_TABLE))
    if _SPECIAL.search(text) is None:
        return " ".join(text.split())
    # A row of a matrix ends with two backslashes. Elsewhere two stand for one, as in JSON.
    text = text.replace("\\\\", " \\cr " if "matrix" in text or "array" in text else "\\")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _UNIT.sub(lambda unit: re.sub(r"\{(-?[0-9])\}", r"\1", unit[0]), text)
    return " ".join(text.split())


def unwrapped(text: str) -> str:
    """Return the text without delimiters of formulas, Markdown and a full stop around it."""
    while True:
        shorter = text.strip().removesuffix("\\\\").rstrip()
        if shorter.endswith((".", ",", ";")) and not shorter.endswith(("..", "\\,", "\\;")):
            shorter = shorter[:-1]
        for opening, closing in _WRAPPED:
            inner = shorter[len(opening) : len(shorter) - len(closing)]
            if len(shorter) > 2 * len(opening) and shorter == opening + inner + closing and opening not in inner:
                shorter = inner
        if shorter == text:
            return text
        text = shorter

"""Completions that are meant to hang, crash, deceive or take over whatever judges them."""

from __future__ import annotations

CANARY = "/tmp/maxpo-hostile-canary"
"""A file that some of them would create, were they ever executed."""

_SHELL = f"__import__('os').system('touch {CANARY}')"
_OPEN = f"open('{CANARY}','w')"


def _boxed(content: str) -> str:
    return "\\boxed{" + content + "}"


BOMBS: dict[str, str] = {
    "power tower": _boxed("9^{9^{9^9}}"),
    "python power tower": _boxed("9**9**9**9"),
    "factorial of a power": _boxed("(10^{10})!"),
    "factorial of factorials": _boxed("((9!)!)!"),
    "endless sum": _boxed(r"\sum_{n=1}^{10^{12}} \frac{1}{n^2}"),
    "endless product": _boxed(r"\prod_{n=1}^{10^9} n"),
    "binomial": _boxed(r"\binom{10^9}{5 \cdot 10^8}"),
    "hard sine": _boxed(r"\sin(10^{10^{10}})"),
    "expansion": _boxed("(x+y+z+w)^{200}"),
    "catastrophic regex": "a" * 40 + "!",
}
"""Some verifier may take for ever on each of these: a time limit is a defined outcome."""

TEXTS: dict[str, str] = {
    "empty": "",
    "white space": " \t\n\r\x0b\x0c" * 1000,
    "frac bomb": _boxed("\\frac" * 50),
    "frac of frac": _boxed("\\frac{1}{" * 29 + "1" + "}" * 29),
    "root of root": _boxed("\\sqrt{" * 40 + "2" + "}" * 40),
    "braces that close": _boxed("{" * 9_000 + "1" + "}" * 9_000),
    "braces that do not": "\\boxed{" * 2_800,
    "parentheses in a short box": _boxed("(" * 149 + "1" + ")" * 149),
    "parentheses in prose": "answer: " + "(" * 140 + "1" + ")" * 140,
    "braces in a short box": _boxed("{" * 140 + "}" * 140),
    "braces without a box": "{" * 19_999,
    "backslashes": "\\" * 19_999,
    "dollars": "$" * 19_999,
    "dollars in a box": "$ \\boxed{" + "$ " * 130 + "}",
    "many boxes": _boxed("41") * 2_000,
    "a million digits": "9" * 1_000_000,
    "a million digits in a box": _boxed("9" * 1_000_000),
    "19000 digits": "9" * 19_000,
    "19000 digits in a box": _boxed("9" * 19_000),
    "5000 digits of JSON": '{"age": ' + "9" * 5_000 + "}",
    "huge exponent": _boxed("1e999999999"),
    "huge exponent in prose": "answer: 1e999999999",
    "infinity": _boxed("\\infty"),
    "not a number": "NaN",
    "division by zero": _boxed("1/0"),
    "zero to the zero": _boxed("0^0/0"),
    "arabic digits": _boxed("\u0664\u0663"),
    "full-width digits": _boxed("\uff14\uff13"),
    "superscript digits": _boxed("\u2074\u00b3"),
    "right to left": _boxed("\u202e34\u202c"),
    "zero width": _boxed("4\u200b3\u2060"),
    "homoglyph": "The \u0430nswer is \u0392",
    "combining marks": "4" + "\u0301" * 10_000,
    "null bytes": _boxed("43\x00") + "\x00" * 1000,
    "lone surrogate": _boxed("\ud800") + "\udfff",
    "ansi": "\x1b[2J\x1b]0;owned\x07\x1b[31m" + _boxed("43\x1b[0m"),
    "shell in prose": _SHELL,
    "shell in a box": _boxed(_SHELL),
    "shell as text in a box": _boxed("\\text{" + _SHELL + "}"),
    "shell as an answer": "The final answer is " + _SHELL + ". I hope it is correct.",
    "open in a box": _boxed(_OPEN),
    "lambda in a box": _boxed(f"(lambda: {_OPEN})()"),
    "write18": _boxed("\\immediate\\write18{touch " + CANARY + "}"),
    "include": _boxed("\\input{/etc/passwd}"),
    "operatorname": _boxed("\\operatorname{exec}(\\text{" + _OPEN + "})"),
    "format string": "{0.__class__.__init__.__globals__}%s%n" * 100,
    "template": "{{7*7}}${7*7}#{7*7}`touch " + CANARY + "`$(touch " + CANARY + ")",
    "yaml": f'!!python/object/apply:os.system ["touch {CANARY}"]',
    "pickle": f"cos\nsystem\n(S'touch {CANARY}'\ntR.",
    "json arrays": "[" * 10_000 + "]" * 10_000,
    "json objects": '{"a":' * 3_300 + "1" + "}" * 3_300,
    "json fenced": "```json\n" + "[" * 9_990,
    "fences": "```json\n```\n" * 1_600,
    "json keys": "{" + ",".join(f'"k{i}": {i}' for i in range(1_500)) + "}",
    "json pointers": '{"$ref": "http://127.0.0.1:1/x", "__proto__": {"age": 3}}',
    "think tags": "<think>" * 2_800,
    "closed think tags": "</think>" * 2_400,
    "countdown": "3*2=6," * 3_000,
    "signs": "+-" * 9_999,
    "commas": "1," * 9_999,
    "answers": "answer is " * 1_999,
}
"""Every verifier gives a verdict of its own on each of these, in time."""

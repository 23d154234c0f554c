r"""From a text to an expression: LaTeX and plain mathematics, such as `\frac{\pi}{2}` and `pi/2`.

The grammar covers numbers, symbols, functions, lists, sets, tuples, intervals, unions, matrices, equations,
inequalities, units and words. A word that is not known stays in the expression, so it is never dropped.
"""

from __future__ import annotations

import re
from fractions import Fraction

from maxpo.rewards.maths.nodes import ForeignError, MalformedError, Node, call, number, symbol
from maxpo.rewards.maths.spelling import plain
from maxpo.rewards.maths.tokens import Token, tokens
from maxpo.rewards.maths.words import BASES, MULTIPLIERS, PERCENT, read_unit

RELATIONS = {
    "=": "=", "\\approx": "~", "\\equiv": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=",
    "\\in": "in",
}  # fmt: skip
_TRIGONOMETRY = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")
_INVERSE = {f"arc{name}": f"a{name}" for name in _TRIGONOMETRY} | {f"a{name}": f"a{name}" for name in _TRIGONOMETRY}
_PLAIN_FUNCTIONS = (*_TRIGONOMETRY, "ln", "log", "exp", "lg", "abs")
FUNCTIONS = {name: name for name in _PLAIN_FUNCTIONS} | _INVERSE
"""Spelling of a function -> its name in `maxpo.rewards.maths.values`."""
_CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "emptyset": "emptyset"}
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar".split()
)
_FOREIGN = set("int iint sum prod lim det gcd lcm cap setminus bmod pmod mod max min nabla partial arg Re Im".split())
_OPENING = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_CLOSING = {*_OPENING.values(), "}", "|", "&", "\\cr"}
_CURRENCIES = {"$": "dollar", "\\$": "dollar", "\u20ac": "euro", "\u00a3": "gbp", "\u00a5": "yen", "\u20b9": "rupee"}
_BASED = re.compile(
    r"(?P<minus>-?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?\(?(?P<digits>[0-9A-F]+)\)?\s*\}?"
    r"\s*_\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?:(?P<base>[0-9]{1,2})|(?P<word>[a-z]+))\s*\}?\s*\}?"
)


def read(text: str, *, thousands: bool = True) -> Node:
    """Return the expression of a text.

    Args:
        text: LaTeX or plain text.
        thousands: See `maxpo.rewards.maths.tokens.tokens`.

    Raises:
        ForeignError: The text has notation that is not covered here, but may be mathematics.
        MalformedError: The text is no expression.
    """
    spelled = plain(text)
    based = _BASED.fullmatch(spelled)
    if based is not None:
        return _in_base(based)
    reader = _Reader(tokens(spelled, thousands=thousands))
    try:
        node = reader.members()
    except RecursionError as error:
        raise MalformedError("nested too deeply") from error
    if reader.peek() is not None:
        raise MalformedError(f"unexpected {reader.text()!r}")
    return node


def _in_base(match: re.Match[str]) -> Node:
    """Return the value of a number such as 1011_2."""
    base = int(match["base"]) if match["base"] else BASES.get(match["word"], 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match["digits"]):
        raise MalformedError("a digit is not one of the base")
    value = int(match["digits"], base)
    return number(-value if match["minus"] else value)


class _Reader:
    """A parser by recursive descent."""

    def __init__(self, found: list[Token]) -> None:
        self._tokens, self._next = found, 0

    def peek(self, ahead: int = 0) -> Token | None:
        """Return a token without taking it. None: the text ends before."""
        index = self._next + ahead
        return self._tokens[index] if index < len(self._tokens) else None

    def text(self, ahead: int = 0) -> str:
        """Return the text of a token that is a sign. Empty for others and at the end."""
        token = self.peek(ahead)
        return token.text if token is not None and token.kind == "sign" else ""

    def _take(self) -> Token:
        token = self.peek()
        if token is None:
            raise MalformedError("the text ends too early")
        self._next += 1
        return token

    def _accept(self, *texts: str) -> bool:
        if self.text() in texts and texts:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise MalformedError(f"{text} is missing")

    def members(self) -> Node:
        """Return all that stands between brackets or in the text: one expression, or a list."""
        found, separators = [self._relation()], set[str]()
        while separator := self._separator():
            separators.add(separator)
            found.append(self._relation())
        return found[0] if len(found) == 1 else Node("list", tuple(found), "or" if separators == {"or"} else "")

    def _separator(self) -> str:
        """Take a comma, a semicolon, "and", "or", or a comma and such a word. Return the last. Empty: there is none."""
        taken = "," if self._accept(",", ";") else ""
        token = self.peek()
        if token is not None and token.kind in ("word", "letters") and token.text.lower() in ("and", "or"):
            self._next += 1
            taken = token.text.lower()
        return taken

    def _relation(self) -> Node:
        if self.text() in ("=", "\\approx"):
            self._next += 1
        found, signs = [self._union()], list[str]()
        while self.text() in RELATIONS:
            signs.append(RELATIONS[self._take().text])
            found.append(self._union())
        return found[0] if not signs else Node("relation", tuple(found), " ".join(signs))

    def _union(self) -> Node:
        found = [self._sum()]
        while self._accept("\\cup"):
            found.append(self._sum())
        return found[0] if len(found) == 1 else Node("union", tuple(found))

    def _sum(self) -> Node:
        node = Node("plus_minus", (number(0), self._term())) if self._accept("\\pm") else self._term()
        while True:
            if self._accept("+"):
                node = Node("add", (node, self._term()))
            elif self._accept("-"):
                node = Node("add", (node, Node("negative", (self._term(),))))
            elif self._accept("\\pm"):
                node = Node("plus_minus", (node, self._term()))
            else:
                return node

    def _term(self) -> Node:
        node = self._signed()
        while True:
            if self._accept("*"):
                node = Node("multiply", (node, self._signed()))
            elif self._accept("/"):
                node = Node("divide", (node, self._signed()))
            elif self._starts_phrase():
                node = self._phrase(node)
            elif self._starts_factor():
                node = self._beside(node)
            else:
                return node

    def _signed(self) -> Node:
        negative = False
        while self.text() in ("-", "+") or self._is_word("minus", "negative"):
            negative ^= self._take().text != "+"
        node = self._power()
        if _is_natural(node) and (fraction := self._simple_fraction()):
            node = self._postfix(number(node.value + fraction))  # a mixed number, such as 3 1/2
        return Node("negative", (node,)) if negative else node

    def _is_word(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind in ("word", "letters") and token.text.lower() in texts

    def _starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token.kind == "end" or self._is_word("and", "or"):
            return False
        if token.kind != "sign":
            return True
        return token.text in _OPENING or token.text == "{" or (
            token.text.startswith("\\") and token.text not in RELATIONS and token.text not in _CLOSING
            and token.text not in ("\\cup", "\\pm")
        )  # fmt: skip

    def _beside(self, node: Node) -> Node:
        """Return the product with the factor that follows, or a mixed number."""
        token = self.peek()
        assert token is not None
        if node.kind == "word":
            if token.kind not in ("word", "letters"):
                raise MalformedError("a word before an expression")
            return Node("word", name=f"{node.name} {self._take().text}")
        if token.kind == "number":
            raise MalformedError("two numbers side by side")
        if token.kind == "letters" and len(token.text) == 3 and not _is_name(token.text):
            self._shorten(token)
            return Node("multiply", (node, self._raised_to(symbol(token.text[0]))))
        factor = self._power()
        if factor.kind in ("word", "list") or (factor.kind == "group" and node.kind != "symbol"):
            raise MalformedError("an expression beside a word or a list")
        return Node("multiply", (node, factor))

    def _simple_fraction(self) -> Fraction | None:
        r"""Take `\frac{1}{2}` or `1/2` after a number. None: there is no proper fraction of two numbers."""
        patterns = (("\\frac", "{", None, "}", "{", None, "}"), ("\\frac", None, None), (None, "/", None))
        for pattern in patterns:
            values: list[Node] = []
            for ahead, text in enumerate(pattern):
                token = self.peek(ahead)
                if token is None or (token.kind != "number" if text is None else token.text != text):
                    break
                if text is None:
                    assert token.node is not None
                    values.append(token.node)
            else:
                if len(pattern) == 3 and pattern[0] is not None:
                    continue  # `\frac12` is one number token, see _fraction
                if all(map(_is_natural, values)) and 0 < values[0].value < values[1].value:
                    self._next += len(pattern)
                    return values[0].value / values[1].value
        token = self.peek(1)
        if (
            self.text() == "\\frac"
            and token is not None
            and re.fullmatch("[1-9][1-9]", token.text)
            and token.text[0] < token.text[1]
        ):
            self._next += 2
            return Fraction(int(token.text[0]), int(token.text[1]))
        return None

    def _power(self) -> Node:
        return self._raised_to(self._primary())

    def _raised_to(self, node: Node) -> Node:
        node = self._postfix(node)
        if not self._accept("^"):
            return node
        if self.text() == "\\circ":
            raise MalformedError("a degree sign in a place of its own")
        return self._postfix(Node("power", (node, self._exponent())))

    def _exponent(self) -> Node:
        if self._accept("-"):
            return Node("negative", (self._exponent(),))
        if self._accept("+"):
            return self._exponent()
        token = self.peek()
        if token is not None and token.kind == "letters" and len(token.text) > 1 and token.text not in _CONSTANTS:
            self._shorten(token)
            return symbol(token.text[0])
        return self._power()

    def _shorten(self, token: Token) -> None:
        """Take the first letter of a token of letters."""
        self._tokens[self._next] = Token("letters", token.text[1:])

    def _postfix(self, node: Node) -> Node:
        while True:
            if self._accept("!"):
                node = call("factorial", node)
            elif self._accept("%", "\\%"):
                node = Node("percent", (node,))
            elif self._accept("\\degree"):
                node = Node("unit", (node,), self._degree())
            elif self._accept("'"):
                node = Node("symbol", name=f"{node.name}'") if node.kind == "symbol" else call("prime", node)
            elif self.text() == "_" and node.kind == "symbol":
                self._next += 1
                node = symbol(f"{node.name}_{self._subscript()}")
            else:
                return node

    def _degree(self) -> str:
        token = self.peek()
        if token is not None and token.text in ("C", "F"):
            self._next += 1
            return "celsius" if token.text == "C" else "fahrenheit"
        return "degree"

    def _subscript(self) -> str:
        if not self._accept("{"):
            return self._take().text
        texts: list[str] = []
        while not self._accept("}"):
            texts.append(self._take().text)
        return "".join(texts)

    def _starts_phrase(self) -> bool:
        """Return True if a unit, a multiplier such as "million", "percent" or another long word follows a factor."""
        token = self.peek()
        if token is None or token.kind not in ("word", "letters") or self._is_word("and", "or"):
            return False
        text = token.text
        if token.kind == "word":
            return (len(text) > 1 and text not in FUNCTIONS) or read_unit(text) is not None
        known = (text.lower() in MULTIPLIERS and len(text) > 3) or text.lower() in PERCENT
        return known or _is_long(text) or (len(text) > 1 and not _is_name(text) and read_unit(text) is not None)

    def _phrase(self, node: Node) -> Node:
        if node.kind == "word":
            return self._beside(node)
        token = self._take()
        word = token.text.lower()
        if word in MULTIPLIERS:
            return Node("multiply", (node, number(MULTIPLIERS[word])))
        if word in PERCENT:
            return Node("percent", (node,))
        words = [token.text]
        while (token := self.peek()) is not None:
            after = self.peek(1)
            joins = token.text in ("/", "*") and after is not None and after.kind in ("word", "letters")
            if joins or (token.kind in ("word", "letters") and not self._is_word("and", "or")):
                words.append(self._take().text)
            elif token.text == "^":
                words.append(self._raised())
            else:
                break
        return Node("unit", (node,), " ".join(words))

    def _raised(self) -> str:
        """Take the power of a unit."""
        self._take()
        power = self._exponent()
        negative = power.kind == "negative"
        power = power.args[0] if negative else power
        if not _is_natural(power) or power.value > 9:
            raise MalformedError("a unit's power must be a small number")
        return f"^{'-' if negative else ''}{power.value}"

    def _primary(self) -> Node:
        token = self._take()
        if token.kind == "number":
            assert token.node is not None
            return token.node
        if token.kind == "letters":
            return self._letters(token)
        if token.kind == "word":
            return self._word(token)
        if token.kind == "matrix":
            return self._matrix()
        return self._sign(token.text)

    def _sign(self, text: str) -> Node:
        if text == "{":
            node = self.members()
            self._expect("}")
            return node
        if text in _OPENING:
            return self._brackets(text)
        if text == "|":
            node = self._sum()
            self._expect("|")
            return call("abs", node)
        if text in _CURRENCIES:
            return Node("unit", (self._term(),), _CURRENCIES[text])
        if text.startswith("\\") and text[1:].isalpha():
            return self._command(text[1:])
        raise MalformedError(f"unexpected {text!r}")

    def _command(self, name: str) -> Node:
        if name == "frac":
            return self._fraction()
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return call("binomial", self._argument(), self._argument())
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if name == "mathbb":
            return symbol(f"mathbb{self._argument().name}")
        if name in (
            "overline",
            "overrightarrow",
            "vec",
            "angle",
            "triangle",
            "hat",
            "bar",
            "widehat",
            "arc",
            "perp",
            "parallel",
        ):
            return symbol(f"{name} {_letters_of(self._argument())}")
        if name in _FOREIGN or name == "begin":
            raise ForeignError(f"\\{name}")
        if name in _CONSTANTS:
            return symbol(_CONSTANTS[name])
        if name in _GREEK:
            return symbol(name.removeprefix("var"))
        raise MalformedError(f"unknown command \\{name}")

    def _fraction(self) -> Node:
        token = self.peek()
        if token is not None and token.kind == "number" and re.fullmatch("[0-9]{2,}", token.text):
            # `\frac12` is one half, and `\frac123` is one half beside 3.
            digits = token.text
            if len(digits) > 2:
                raise MalformedError(f"\\frac{digits} is not clear")
            self._next += 1
            return Node("divide", (number(int(digits[0])), number(int(digits[1]))))
        return Node("divide", (self._argument(), self._argument()))

    def _argument(self) -> Node:
        """Return an argument of a command: braces, or the next single thing."""
        token = self.peek()
        if token is not None and token.kind == "letters" and len(token.text) > 1:
            self._shorten(token)
            return symbol(token.text[0])
        return self._primary()

    def _root(self) -> Node:
        degree = number(2)
        if self._accept("["):
            degree = self._sum()
            self._expect("]")
        token = self.peek()
        if token is not None and token.kind == "number":
            self._next += 1
            assert token.node is not None
            return call("root", token.node, degree)
        return call("root", self._argument(), degree)

    def _function(self, name: str) -> Node:
        base = power = None
        while self.text() in ("^", "_"):
            if self._take().text == "^":
                power = self._exponent()
            else:
                base = self._argument()
        arg = self._function_argument()
        if power is not None and _is_minus_one(power) and name in _TRIGONOMETRY:
            name, power = f"a{name}", None
        if base is not None:
            if name != "log":
                raise MalformedError(f"{name} has no base")
            node = call("log_base", base, arg)
        else:
            node = call(name, arg)
        return node if power is None else Node("power", (node, power))

    def _function_argument(self) -> Node:
        if self.text() in ("(", "[", "{", "|") or self.text() == "\\{":
            return self._primary()
        node = self._signed()
        while self._starts_factor() and not self._starts_phrase():
            token = self.peek()
            assert token is not None
            if token.text in _OPENING or token.text.lstrip("\\") in FUNCTIONS or node.kind == "word":
                break
            node = self._beside(node)
        return node

    def _letters(self, token: Token) -> Node:
        text = token.text
        if text == "sqrt":
            return self._root()
        if text in FUNCTIONS and self.peek() is not None:
            return self._function(FUNCTIONS[text])
        if text in _CONSTANTS:
            return symbol(_CONSTANTS[text])
        if text in _GREEK:
            return symbol(text)
        for name in sorted(FUNCTIONS, key=len, reverse=True):
            if text.startswith(name) and len(text) == len(name) + 1:
                return self._with_last(FUNCTIONS[name], text[-1])
        if text.lower() == "no" or len(text) > 3 or (len(text) == 3 and self.text() not in ("^", "_", "'", "(", "!")):
            return Node("word", name=text)
        if len(text) > 1:  # a product, of which an exponent takes the last letter only
            self._next -= 1
            self._shorten(token)
        return symbol(text[0])

    def _with_last(self, name: str, letter: str) -> Node:
        """Return `sinx`: a function of the letter, and of what follows."""
        self._next -= 1
        self._tokens[self._next] = Token("letters", letter)
        return self._function(name)

    def _word(self, token: Token) -> Node:
        text = token.text
        if text in FUNCTIONS and self.peek() is not None:
            return self._function(FUNCTIONS[text])
        if text in _FOREIGN and text not in ("arg", "mod"):
            raise ForeignError(text)
        return symbol(text) if len(text) == 1 else Node("word", name=text)

    def _brackets(self, opening: str) -> Node:
        if opening == "\\{" and self._accept("\\}"):
            return symbol("emptyset")
        node = self.members()
        closing = self._take().text
        if closing != _OPENING[opening] and {opening, closing} not in ({"(", "]"}, {"[", ")"}):
            raise MalformedError(f"{opening} ends with {closing}")
        if opening in ("\\lfloor", "\\lceil"):
            return call(opening[2:], node)  # floor or ceil
        if node.kind == "list":
            return Node("group", node.args, opening + closing)
        return Node("group", (node,), "\\{\\}") if opening == "\\{" else node

    def _matrix(self) -> Node:
        rows, row = list[Node](), list[Node]()
        while True:
            token = self.peek()
            if token is not None and token.kind == "end" and not row and rows:
                self._next += 1
                break
            row.append(self._sum())
            if self._accept("&"):
                continue
            rows.append(Node("row", tuple(row)))
            row = []
            if not self._accept("\\cr") and ((token := self.peek()) is None or token.kind != "end"):
                raise MalformedError("a matrix does not end")
        if len({len(row.args) for row in rows}) != 1:
            raise MalformedError("rows of different lengths")
        return Node("matrix", tuple(rows))


def _is_natural(node: Node) -> bool:
    return node.kind == "number" and node.digits is None and node.value.denominator == 1 and node.value >= 0


def _is_minus_one(node: Node) -> bool:
    return node.kind == "negative" and node.args[0].kind == "number" and node.args[0].value == 1


def _is_name(text: str) -> bool:
    """Return True if letters are a function, a constant or a Greek letter."""
    return text in FUNCTIONS or text in _CONSTANTS or text in _GREEK or text == "sqrt"


def _is_long(text: str) -> bool:
    """Return True if letters are a word rather than a product of symbols."""
    return len(text) > 3 and not _is_name(text) and not any(text.startswith(name) for name in FUNCTIONS)


def _letters_of(node: Node) -> str:
    if node.kind in ("symbol", "word"):
        return node.name
    if node.kind == "multiply":
        return "".join(map(_letters_of, node.args))
    raise MalformedError("a name must have letters only")

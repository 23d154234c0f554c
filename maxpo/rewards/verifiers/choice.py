"""The verifier for multiple choice."""

from __future__ import annotations

import re

from maxpo.rewards.base import Score
from maxpo.rewards.references import alternatives
from maxpo.rewards.verifiers.boxed import has_box, last_boxed

_LONGEST = 60
"""Most characters of white space and signs before a letter, and of a box."""
_LINE = 200
"""Characters of a line that are read after a claim."""
# ASCII, because ignoring case would otherwise match dotless i and look-alikes of other scripts.
_FLAGS = re.ASCII | re.IGNORECASE
_PHRASE = re.compile(
    r"\b(?:answer|choice|option|ans)\b[^\n.:=]{0,40}?(?:\b(?:is|be|was)\b|[:=]|\s-\s)"
    r"|\b(?:choose|chose|select|pick|go\s+with)\b",
    _FLAGS,
)
_VERDICT = re.compile(
    r"(?<![\w'])\(?(?P<letter>[A-J])\)?[*_]*\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|choice|option))?\b",
    re.ASCII,
)
_BEFORE = re.compile(
    r"(?:[\s:*_$#\"'`=>-]|\\[(\[]|\\(?:text|textbf|textit|mathrm|mathbf|boxed|fbox)\s*\{"
    r"|\b(?:option|choice|letter|the|therefore|thus|hence)\b)*",
    _FLAGS,
)
_LETTER = re.compile(r"\((?P<round>[A-J])\)|\[(?P<square>[A-J])\]|(?P<bare>[A-J])(?![A-Za-z0-9_'])", _FLAGS)
_CLOSING = re.compile(r"(?:[)\]}*$_\"'`\s]|\\[)\]])*")
_REASON = re.compile(
    r"[.,:;-]|\u2013|\u2014|(?:because|since|as|which|is\s+(?:the\s+)?(?:correct|right|best))\b", _FLAGS
)
_ANOTHER = re.compile(r"(?:\b(?:or|and|nor)\b|[,/&;])\s*(?:option\s+)?[(*]*[A-J](?![\w'])(?!\s+[a-z])", re.ASCII)
_ANY = re.compile(r"(?<![\w'])[A-J](?![\w'])|\b(?:not|neither|none)\b|n't\b", re.ASCII)


def choice(text: str, reference: object, *, boxed: bool = False) -> Score:
    r"""Return reward 1 if the chosen letter is the reference, otherwise 0.

    The letter is A to J in either case. The content of the last box is read. Without a box, the last claim counts, such
    as "answer is", "answer:", "I choose" or "B is correct", with the rest of its line. Without any claim, the last line
    is read. `B`, `(B)`, `**B**`, `\(B\)`, `Option B` and `B) text` are letters. "A or B" is none.

    Args:
        text: Any text.
        reference: A letter, such as `"B"` or `"(b)"`, or a list of alternatives.
        boxed: True if only a letter in `\boxed{}` counts.

    Returns:
        The reward, and the part `format`: 1 if one letter was chosen, otherwise 0.

    Raises:
        ValueError: The reference is not a letter from A to J.
    """
    wanted = {_only_letter(letter) for letter in alternatives("choice", reference)}
    if None in wanted:
        raise ValueError(f"choice: the reference must be a letter from A to J, got {reference!r}")
    chosen = answer(text, boxed=boxed)
    right = chosen in wanted
    return Score(reward=float(right), success=right, parts={"format": float(chosen is not None)})


def answer(text: str, *, boxed: bool = False) -> str | None:
    """Return the chosen letter, for `maj@n`, or None."""
    if boxed or has_box(text):
        content = last_boxed(text, _LONGEST)
        return None if content is None else _letter(content)
    claims = [(m.end(), _line(text[m.end() : m.end() + _LINE])) for m in _PHRASE.finditer(text)]
    claims = [claim for claim in claims if _ANY.search(claim[1]) or _letter(claim[1]) is not None]
    claims += [(m.end(), m["letter"]) for m in _VERDICT.finditer(text)]
    if claims:
        return _letter(max(claims)[1])
    if _PHRASE.search(text):
        return None
    return _letter(text.strip().rpartition("\n")[2][:_LINE])


def _line(text: str) -> str:
    """Return the first line that is not blank. Empty if too much white space comes before."""
    stripped = text.lstrip()
    return stripped.partition("\n")[0] if len(text) - len(stripped) <= _LONGEST else ""


def _letter(line: str) -> str | None:
    """Return the letter that begins a line, if the line claims no other letter."""
    before = _BEFORE.match(line)
    assert before is not None
    letter = _LETTER.match(line, before.end())
    if letter is None or before.end() > _LONGEST:
        return None
    closing = _CLOSING.match(line, letter.end())
    assert closing is not None
    rest = line[closing.end() :]
    enclosed = letter["bare"] is None or bool(closing[0].strip())
    if rest and ((not enclosed and not _REASON.match(rest)) or not rest.isprintable() or _ANOTHER.search(rest)):
        return None
    return (letter["round"] or letter["square"] or letter["bare"]).upper()


def _only_letter(reference: str) -> str | None:
    """Return the letter of a reference, which has nothing else."""
    match = re.fullmatch(r"\s*\(?([A-Ja-j])\)?[.)]?\s*", reference)
    return match[1].upper() if match else None

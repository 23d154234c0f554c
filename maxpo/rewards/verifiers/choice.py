"""The verifier for multiple choice."""

from __future__ import annotations

import re

from maxpo.rewards.base import Score
from maxpo.rewards.verifiers.boxed import last_boxed

_LONGEST = 60
"""Most characters of a letter and its surroundings."""
# Both cases are listed, because ignoring case would also match dotless i and look-alikes of other scripts.
_LETTER = re.compile(
    r"[\s:*$]*+(?:\\(?:text|textbf|mathrm|mathbf)\{)?+\s*+"
    r"(?:\((?P<inside>[A-Ja-j])\)|(?P<bare>[A-Ja-j])\)?)"
    r"\s*+\}?+[\s.*$]*+"
)
_PHRASE = re.compile(r"(?:[Aa]nswer|ANSWER)(?: is\b|:)")


def choice(text: str, reference: object, *, boxed: bool = False) -> Score:
    r"""Return reward 1 if the chosen letter is the reference, otherwise 0.

    The letter is A to J in either case. The content of the last `\boxed{}` is read. Without a box, the rest of the line
    after the last "answer is" or "answer:" is read. Without such a phrase, all text is read. The letter may be
    surrounded by parentheses, stars, dollar signs, `\text{}` and a full stop only, so "A or B" is not a choice.

    Args:
        text: Any text.
        reference: A letter, such as `"B"` or `"(b)"`.
        boxed: True if only a letter in `\boxed{}` counts.

    Returns:
        The reward, and the part `format`: 1 if one letter was chosen, otherwise 0.

    Raises:
        ValueError: The reference is not a letter from A to J.
    """
    wanted = _letter(str(reference))
    if wanted is None:
        raise ValueError(f"choice: the reference must be a letter from A to J, got {reference!r}")
    chosen = answer(text, boxed=boxed)
    right = chosen == wanted
    return Score(reward=float(right), success=right, parts={"format": float(chosen is not None)})


def answer(text: str, *, boxed: bool = False) -> str | None:
    """Return the chosen letter, for `maj@n`, or None."""
    return _letter(_candidate(text, boxed))


def _candidate(text: str, boxed: bool) -> str:
    if boxed or "\\boxed" in text:
        return last_boxed(text, _LONGEST) or ""
    after = max((phrase.end() for phrase in _PHRASE.finditer(text)), default=None)
    return text.strip() if after is None else text[after : after + _LONGEST + 1].partition("\n")[0]


def _letter(candidate: str) -> str | None:
    if len(candidate) > _LONGEST:
        return None
    match = _LETTER.fullmatch(candidate)
    return (match["inside"] or match["bare"]).upper() if match else None

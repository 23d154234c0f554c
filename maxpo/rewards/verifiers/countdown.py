"""The verifier of the countdown task (`maxpo.tasks.countdown`)."""

from __future__ import annotations

import re
from typing import TypedDict

from maxpo.rewards.base import Score

# [0-9] is used because \d also matches digits of other scripts. Two digits at most keep int() cheap.
_NUMBER = "(0|[1-9][0-9]?)"
_STEP = re.compile(rf"{_NUMBER}([-+*]){_NUMBER}={_NUMBER}")
_LONGEST_STEP = len("99*99=99,")


class CountdownReference(TypedDict):
    """Numbers and target of a problem."""

    numbers: list[int]
    target: int


def countdown(text: str, reference: CountdownReference) -> Score:
    """Replay the steps of an answer such as `3*2=6,7+6=13`.

    The reward is 1 if every step is legal, all numbers are used and the last result is the target, otherwise 0.
    A step is legal if it has the form above without spaces, signs or leading zeros, its arithmetic is right, its
    result lies in 0..99, and its operands are numbers or results that no earlier step has used.

    Args:
        text: Any text.
        reference: `{"numbers": [3, 7, 2], "target": 13}`.

    Returns:
        The reward, and the part `format`: 1 if there is at least one step and all are legal, otherwise 0.
    """
    pool = list(reference["numbers"])
    target = reference["target"]
    if len(text) > _LONGEST_STEP * len(pool):  # also keeps split() cheap
        return Score(reward=0.0, success=False, parts={"format": 0.0})
    for step in text.split(","):
        match = _STEP.fullmatch(step)
        if match is None:
            return Score(reward=0.0, success=False, parts={"format": 0.0})
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        if result != {"+": left + right, "-": left - right, "*": left * right}[match[2]]:
            return Score(reward=0.0, success=False, parts={"format": 0.0})
        for operand in (left, right):
            if operand not in pool:
                return Score(reward=0.0, success=False, parts={"format": 0.0})
            pool.remove(operand)
        pool.append(result)
    right = pool == [target]
    return Score(reward=float(right), success=right, parts={"format": 1.0})

"""Accuracy of the verifiers of answers, beside math-verify alone and a comparison of texts.

    python -m benchmarks.verifiers

Reads tests/data/verifier_answers.jsonl: answers, references and verdicts, which people have decided. Prints a table for
docs/verifiers.md. math-verify extracts and compares with its defaults, and with a box for answers of `numeric` and
`choice` it needs none. The comparison of texts takes the box, or else the last word.
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maxpo.rewards.maths.nodes import UndecidedError
from maxpo.rewards.registry import REWARDS
from maxpo.rewards.verifiers.boxed import last_boxed

CORPUS = Path(__file__).parents[1] / "tests/data/verifier_answers.jsonl"
Row = dict[str, Any]


def by_maxpo(row: Row) -> bool | None:
    """Verdict of the row's verifier, or None where it cannot decide."""
    try:
        return REWARDS[row["verifier"]](row["answer"], row["reference"]).success
    except UndecidedError:
        return None


def by_math_verify(row: Row) -> bool | None:
    """Verdict of math-verify with its defaults. None if it cannot read the reference."""
    from math_verify import parse, verify  # pyright: ignore[reportMissingTypeStubs]

    gold = parse(f"${row['reference']}$", parsing_timeout=2)
    return verify(gold, parse(row["answer"], parsing_timeout=2), timeout_seconds=2) if gold else None


def by_text(row: Row) -> bool:
    """True if the box, or else the last word, is the reference letter by letter."""
    words = row["answer"].split()
    answer = last_boxed(row["answer"], 300) or (re.sub(r"[.$*]", "", words[-1]) if words else "")
    return answer.strip() == str(row["reference"]).strip()


JUDGES: dict[str, Callable[[Row], bool | None]] = {
    "MaxPO": by_maxpo,
    "math-verify": by_math_verify,
    "equal texts": by_text,
}


def main() -> None:
    """Print the table."""
    rows: list[Row] = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    print(f"{platform.machine()}, Python {platform.python_version()}, {len(rows)} answers\n")
    print("| verifier | judge | answers | accuracy | wrong accepted | right refused | not judged |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for verifier in ("math", "numeric", "choice"):
        own = [row for row in rows if row["verifier"] == verifier]
        for name, judge in JUDGES.items():
            if verifier == "choice" and name == "math-verify":
                continue
            counts = Counter((row["right"], judge(row)) for row in own)
            right = counts[True, True] + counts[False, False]
            missing = counts[True, None] + counts[False, None]
            print(
                f"| `{verifier}` | {name} | {len(own)} | {right / len(own):.1%} | {counts[False, True]} "
                f"| {counts[True, False]} | {missing} |"
            )


if __name__ == "__main__":
    main()

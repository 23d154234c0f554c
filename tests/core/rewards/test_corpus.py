"""The verifiers of answers on a corpus of answers with known verdicts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from maxpo.config import RewardConfig
from maxpo.rewards.maths.nodes import UndecidedError
from maxpo.rewards.registry import REWARDS
from maxpo.rewards.trial import reference_check

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in Path("tests/data/verifier_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


def verdict(row: dict[str, Any]) -> bool | None:
    """True, False, or None where the verifier cannot decide."""
    try:
        return REWARDS[row["verifier"]](row["answer"], row["reference"]).success
    except UndecidedError:
        return None


def test_no_wrong_answer_is_accepted_and_at_most_one_right_answer_in_a_hundred_is_refused() -> None:
    wrong = [(row, got) for row in ROWS if (got := verdict(row)) is not row["right"]]
    assert [row for row, got in wrong if got] == []
    assert [row for row, got in wrong if got is None] == []
    assert len(wrong) <= 0.01 * sum(row["right"] for row in ROWS), wrong


def test_the_corpus_has_right_and_wrong_answers_of_each_kind() -> None:
    assert len(ROWS) >= 600
    kinds = Counter((row["kind"], row["right"]) for row in ROWS)
    assert {kind for kind, _ in kinds} == {kind for kind, right in kinds if right} == {k for k, r in kinds if not r}
    assert min(kinds.values()) >= 4, kinds


def test_every_reference_of_the_corpus_passes_the_trial_before_a_run() -> None:
    for row in ROWS:
        reference_check(RewardConfig(verifier=row["verifier"]))(row["reference"], "corpus")

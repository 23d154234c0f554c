"""docs/verifiers.md: its tables and settings are true."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from maxpo.config import RewardConfig
from maxpo.config.reward import COMBINED
from maxpo.configure.rules.reward import reward_problems
from maxpo.rewards.registry import REWARDS, find_verifier

TEXT = Path("docs/verifiers.md").read_text(encoding="utf-8")
CODE = {"code", "code_unsafe_no_sandbox", "reasoning_gym"}
"""Verifiers that have a page of their own."""


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table that begins with this cell."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


EXAMPLES = table("verifier")


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: f"{row[0]} {row[2]}")
def test_examples(row: list[str]) -> None:
    name, settings, answer, reference, reward = (cell.strip("`") for cell in row)
    judge = find_verifier(name, {name: json.loads(settings or "{}")})
    assert judge("", answer, json.loads(reference)).reward == float(reward)


def test_every_verifier_has_a_row_with_its_settings_and_an_example() -> None:
    rows = {row[0].partition(",")[0].strip("`"): row for row in table("name")}
    assert set(rows) - CODE == {*REWARDS, COMBINED, "package.module:function"} - CODE
    assert {row[0] for row in EXAMPLES} - CODE == set(REWARDS) - CODE
    for name in set(REWARDS) - CODE:
        parameters = inspect.signature(REWARDS[name]).parameters.values()
        settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        cell = rows[name][4]
        assert re.findall(r"`(\w+)` \(", cell) == list(settings), name
        for key, default in settings.items():
            shown = re.search(rf"`{key}` \(`?([^,)`]+)", cell)
            assert shown is not None
            value = float(shown[1]) if isinstance(default, float) else yaml.safe_load(shown[1])
            assert value == default, (name, key)


def test_the_settings_shown_are_allowed() -> None:
    blocks = re.findall(r"(?:^ {4}.*\n)+", TEXT, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert list(reward_problems(RewardConfig(**yaml.safe_load(block)["reward"]), max_new_tokens=1)) == []

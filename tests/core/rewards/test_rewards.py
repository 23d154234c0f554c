"""The general verifiers and the registry."""

from __future__ import annotations

import pytest

from maxpo.rewards.base import Score
from maxpo.rewards.code.verifier import cannot_run
from maxpo.rewards.registry import REWARDS
from maxpo.rewards.verifiers.exact import exact
from maxpo.rewards.verifiers.numeric import numeric

HOSTILE = [
    "",
    "\n",
    "\x00",
    "\ud800",
    "\u0663\u00b2\uff13",
    "1" * 1_000_000,
    "-" * 1_000_000,
    "1," * 500_000,
    "1" + ",111" * 250_000 + "1",
    "1.1." * 250_000,
    "1e" * 500_000,
    ".1e+" * 250_000,
]


REFERENCES = {
    "countdown": {"numbers": [3, 7, 2], "target": 13},
    "regex": "4(2)",
    "json_schema": {"type": "object"},
    "choice": "B",
    "maze": {"grid": ["S.", "#G"], "moves": 2},
    "reasoning_gym": {"dataset": "gcd", "settings": {}, "entry": {"question": "?", "answer": "7", "metadata": {}}},
    "code": {"inputs": [""], "outputs": ["42"]},
    "code_unsafe_no_sandbox": {"inputs": [""], "outputs": ["42"]},
}


@pytest.mark.parametrize("name", sorted(REWARDS))
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_verifier_raises_or_rewards_hostile_text(name, text):
    if (cannot := cannot_run(name)) is not None:
        pytest.skip(cannot)
    if name == "reasoning_gym":
        pytest.importorskip(name)
    assert REWARDS[name](text, REFERENCES.get(name, 42)).reward in ((0.0, -1.0) if name == "length" else (0.0,))


def test_the_registry_is_complete():
    text = {"choice", "countdown", "exact", "format", "json_schema", "length", "math", "numeric", "regex"}
    assert text | {"code", "code_unsafe_no_sandbox", "environment", "maze", "reasoning_gym"} == set(REWARDS)


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        ("yes", "yes", 1.0),
        (" yes\n", "yes", 1.0),
        ("42", 42, 1.0),
        ("", "", 1.0),
        ("Yes", "yes", 0.0),
        ("yes, yes", "yes", 0.0),
        ("42.0", 42, 0.0),
        ("", "yes", 0.0),
    ],
)
def test_exact(text, reference, reward):
    assert exact(text, reference) == Score(reward=reward, success=reward == 1)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("42", 42),
        ("42", "42"),
        ("The answer is 42.", 42),
        ("first 7, then 42", 42),
        ("a list: 7,42", 42),
        ("x=-42", -42),
        ("it is -1.5e3!", -1500),
        ("+3", 3),
        ("$1,234,567.50 in all", 1234567.5),
        ("1234", "1,234"),
        (".5", 0.5),
        ("0", 0),
        ("1000000.5000001", 1_000_000.5),  # within 1e-6 of the reference
        ("42 = \u0663", 42),  # other scripts' digits are not numbers
    ],
)
def test_numeric_accepts(text, reference):
    assert numeric(text, reference) == Score(reward=1.0, success=True, parts={"format": 1.0})


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("-42", 42),
        ("42.001", 42),
        ("1000001", 1_000_000),  # integers are exact
        ("1000000.5", 1_000_000),
        ("0.0000001", 0),
        ("1e999", 42),
        ("4 2", 42),
        ("7,42", 742),  # not a thousands separator
    ],
)
def test_numeric_refuses(text, reference):
    assert numeric(text, reference) == Score(reward=0.0, success=False, parts={"format": 1.0})


@pytest.mark.parametrize(
    ("text", "reference", "tolerance", "reward"),
    [
        ("42.04", 42, 1e-3, 1.0),  # 0.042 is allowed
        ("42.05", 42, 1e-3, 0.0),
        ("-41.96", -42, 1e-3, 1.0),
        ("42.0000001", 42, 0.0, 0.0),
        ("42.0", 42, 0.0, 1.0),
        ("0.001", 0, 0.5, 0.0),  # relative to the reference
        ("1e999", 1e308, 0.9, 0.0),
    ],
)
def test_numeric_with_a_tolerance(text, reference, tolerance, reward):
    assert numeric(text, reference, tolerance=tolerance).reward == reward


@pytest.mark.parametrize("text", ["", "none", "forty-two", "-", ".", "4" * 65, "42 or 42", "5-42"])
def test_numeric_without_a_readable_number(text):
    assert numeric(text, 42) == Score(reward=0.0, success=False, parts={"format": 0.0})


@pytest.mark.parametrize("reference", ["nan", float("inf"), "forty-two", None])
def test_numeric_raises_for_a_reference_that_is_no_finite_number(reference):
    with pytest.raises(ValueError):
        numeric("42", reference)

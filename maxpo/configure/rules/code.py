"""Checks of the settings `reward.code_*`, in the form of `configcheck.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maxpo.config import Config
from maxpo.rewards.code.sandbox import GRACE_S, LEAST_MEMORY_MIB, START_S, worst_s
from maxpo.rewards.code.verifier import CODE_VERIFIERS

CODE_POSITIVE = ["reward.code_case_s", "reward.code_max_cases"]

CODE_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "reward.code_memory_mib",
        lambda v: v >= LEAST_MEMORY_MIB,
        f"Must be {LEAST_MEMORY_MIB} or more: Python itself needs that.",
    ),
)

CODE_COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("reward.timeout_s", "reward.verifier", "reward.code_case_s", "reward.code_max_cases"),
        lambda c: c.reward.verifier not in CODE_VERIFIERS or c.reward.timeout_s >= worst_s(c.reward),
        f"reward.timeout_s must be at least reward.code_max_cases x reward.code_case_s + {START_S + 2 * GRACE_S:g} s: "
        "otherwise answers that take long would be killed and masked instead of judged.",
    ),
)

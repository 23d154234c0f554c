"""Checks of the settings `reward.code_*`."""

from __future__ import annotations

from maxpo.configure.rules import Combination
from maxpo.rewards.code.sandbox import GRACE_S, START_S, worst_s
from maxpo.rewards.code.verifier import CODE_VERIFIERS

CODE_COMBINATIONS: tuple[Combination, ...] = (
    (
        ("reward.timeout_s", "reward.verifier", "reward.code_case_s", "reward.code_max_cases"),
        lambda c: c.reward.verifier not in CODE_VERIFIERS or c.reward.timeout_s >= worst_s(c.reward),
        f"reward.timeout_s must be at least reward.code_max_cases x reward.code_case_s + {START_S + 2 * GRACE_S:g} s: "
        "otherwise slow answers would be killed and masked instead of scored.",
    ),
)

"""Checks of scored groups."""

from __future__ import annotations

from collections.abc import Sequence

from maxpo.errors import RunError
from maxpo.types import ScoredGroup


def check_some_scored(groups: Sequence[ScoredGroup]) -> None:
    """Raise if the verifier failed on every single answer.

    Raises:
        RunError: It did. The message has the first error.
    """
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    if outcomes and all(outcome.startswith("error") for outcome in outcomes):
        raise RunError(f"reward.verifier failed on every answer; first {outcomes[0]}")

"""Receiver of the loop's progress reports."""

from __future__ import annotations

from maxpo.evaluation.figures import EvalReport


class Observer:
    """Receiver of progress reports, for a terminal. This base class ignores them."""

    def note(self, text: str) -> None:
        """Report a fact about the run, once."""

    def stage(self, name: str, total: int = 0) -> None:
        """Report the begin of a stage; `total` is the number of expected groups, 0 if nothing is counted."""

    def advance(self) -> None:
        """Report one more complete group."""

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """Report the end of a training step."""

    def evaluated(self, step: int, result: EvalReport) -> None:
        """Report the end of an evaluation."""

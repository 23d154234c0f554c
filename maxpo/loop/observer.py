"""Who watches a run."""

from __future__ import annotations

from maxpo.evaluation.figures import EvalReport


class Observer:
    """Watches a run, for a terminal; does nothing by itself."""

    def stage(self, name: str, total: int = 0) -> None:
        """A stage of the step begins; `total` groups are expected, 0 where there is nothing to count."""

    def advance(self) -> None:
        """One more group is there."""

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """A training step is over."""

    def evaluated(self, step: int, result: EvalReport) -> None:
        """An evaluation is over."""

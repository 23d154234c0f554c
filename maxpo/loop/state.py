"""Outcome of a run, and the loop's part of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maxpo.data.order import PromptStream
from maxpo.estimators.k_schedule import PassRates
from maxpo.evaluation.figures import EvalReport

TOTALS = (
    *("groups/sampled", "groups/zero_signal", "groups/too_few_valid"),
    *("train/refused_steps", "train/overflow_steps"),
)
"""Metrics of a step that are summed over the run and its resumes."""


@dataclass(slots=True)
class RunResult:
    """Outcome of a run."""

    steps: int = 0
    stopped: bool = False
    saved_step: int = 0
    """Step of the newest checkpoint, 0 without a checkpoint."""
    evaluations: dict[int, EvalReport] = field(default_factory=dict[int, EvalReport])
    totals: Counter[str] = field(default_factory=Counter[str])
    """Sums of the metrics in `TOTALS` over all steps of the run."""
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Metrics of the steps since the start or the resume."""


def state_of(result: RunResult, stream: PromptStream, rates: PassRates, version: float) -> dict[str, Any]:
    """Return the loop's part of a checkpoint as plain JSON. Seeds come from names, so no random state exists."""
    return {
        "step": result.steps,
        "version": int(version),
        "stream": stream.state_dict(),
        "pass_rates": rates.state_dict(),
        "totals": dict(result.totals),
        "evaluations": {str(step): asdict(report) for step, report in result.evaluations.items()},
    }


def restore(state: Mapping[str, Any], result: RunResult, stream: PromptStream, rates: PassRates) -> int:
    """Restore the values that `state_of` returned; return the version of the weights."""
    stream.load_state_dict(state["stream"])
    rates.load_state_dict(state["pass_rates"])
    result.steps = result.saved_step = state["step"]
    result.totals = Counter(state["totals"])
    result.evaluations = {int(step): EvalReport.from_dict(report) for step, report in state["evaluations"].items()}
    return state["version"]

"""What a run has come to, and what the loop must know to go on with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maxpo.data.order import PromptStream
from maxpo.estimators.k_schedule import PassRates
from maxpo.evaluation.figures import EvalReport

TOTALS = ("groups/sampled", "groups/zero_signal", "groups/too_few_valid", "train/refused_steps")
"""Metrics of a step that are counted over the whole run, also over its resumes."""


@dataclass(slots=True)
class RunResult:
    """What a run came to."""

    steps: int = 0
    stopped: bool = False
    saved_step: int = 0
    """Step of the newest checkpoint, 0 where there is none."""
    evaluations: dict[int, EvalReport] = field(default_factory=dict[int, EvalReport])
    totals: Counter[str] = field(default_factory=Counter[str])
    """Metrics of `TOTALS` added up over all steps of the run."""
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Metrics of the steps since the start or the resume."""


def state_of(result: RunResult, stream: PromptStream, rates: PassRates, version: float) -> dict[str, Any]:
    """The loop's part of a checkpoint, as plain JSON. Seeds come from names, so there is no random state to keep."""
    return {
        "step": result.steps,
        "version": int(version),
        "stream": stream.state_dict(),
        "pass_rates": rates.state_dict(),
        "totals": dict(result.totals),
        "evaluations": {str(step): asdict(found) for step, found in result.evaluations.items()},
    }


def restore(state: Mapping[str, Any], result: RunResult, stream: PromptStream, rates: PassRates) -> int:
    """Go on from what `state_of` gave; returns the version of the weights."""
    stream.load_state_dict(state["stream"])
    rates.load_state_dict(state["pass_rates"])
    result.steps = result.saved_step = state["step"]
    result.totals = Counter(state["totals"])
    result.evaluations = {int(step): EvalReport.from_dict(found) for step, found in state["evaluations"].items()}
    return state["version"]

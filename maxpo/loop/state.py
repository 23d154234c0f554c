"""Outcome of a run, and the loop's part of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from maxpo.checkpoints.manifest import STATE, read_json
from maxpo.data.order import PromptStream
from maxpo.errors import CheckpointError
from maxpo.estimators.adaptive_lam import LamState
from maxpo.estimators.k_schedule import PassRatesState
from maxpo.evaluation.figures import EvalReport
from maxpo.loop.buffer import PendingGroup

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


Count = Annotated[int, Field(ge=0)]


class StreamState(TypedDict):
    """Position of a `PromptStream`."""

    cursor: Count
    seed: int
    prompts: str


class LoopState(TypedDict):
    """The loop's part of a checkpoint, `state.json`. Seeds come from names, so no random state exists."""

    step: Count
    version: Count
    stream: StreamState
    buffer: NotRequired[list[PendingGroup]]
    pass_rates: PassRatesState
    lam: NotRequired[LamState]
    entropy_coef: NotRequired[float]
    totals: dict[str, int]
    evaluations: dict[Annotated[str, Field(pattern="^[0-9]+$")], dict[str, Any]]


def state_of(result: RunResult, stream: PromptStream, collector: Mapping[str, Any], version: float) -> dict[str, Any]:
    """Return the loop's part of a checkpoint as plain JSON, see `LoopState`. `collector` is that of the collector."""
    return {
        "step": result.steps,
        "version": int(version),
        "stream": stream.state_dict(),
        "totals": dict(result.totals),
        "evaluations": {str(step): asdict(report) for step, report in result.evaluations.items()},
        **collector,
    }


def restore(checkpoint: Path, result: RunResult, stream: PromptStream) -> LoopState:
    """Restore the values that `state_of` returned from a checkpoint; return all of them.

    Raises:
        CheckpointError: `state.json` cannot be read or does not fit.
        DataError: See `PromptStream.load_state_dict`.
    """
    file = checkpoint / STATE
    state = read_json(LoopState, file)
    try:
        evaluations = {int(step): EvalReport.from_dict(report) for step, report in state["evaluations"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: evaluations cannot be read ({type(error).__name__}: {error})") from error
    numbers = [group["number"] for group in state.get("buffer", [])]
    if numbers != sorted(set(numbers)) or any(number >= state["stream"]["cursor"] for number in numbers):
        raise CheckpointError(
            f"{file}: buffer has the groups {numbers}: each must be there once, in order, and below the cursor "
            f"{state['stream']['cursor']} of the stream"
        )
    stream.load_state_dict(state["stream"])
    result.steps = result.saved_step = state["step"]
    result.totals = Counter(state["totals"])
    result.evaluations = evaluations
    return state

"""Lengths of completions and times of steps, from a run folder or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from launch.pipeline.simulation import Scenario, resampled, simulate
from maxpo.checked_json import parse
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from maxpo.tracking.run_log import METRICS_FILE

RECENT = 50
"""Newest steps of a run that are read. Lengths change in the course of training."""
T = TypeVar("T")


class _Row(TypedDict):
    """The part of a line of `rollouts/` that is read."""

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Lengths and times of a run that exists, or those that the user gave."""

    source: str
    lengths: NDArray[np.int64]
    """Lengths of completions, tokens."""
    token_s: float
    """Seconds per token of a running completion."""
    update_s: float
    sync_s: float
    score_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTimes:
    """Times on the command line, seconds. They replace those of a run. None: not given."""

    token_s: float | None = None
    update_s: float | None = None
    sync_s: float | None = None


def scenario_of(config: Config, *, token_s: float, **settings: Any) -> Scenario:
    """Return the synchronous scenario of a run, with the same seconds per token for every number of sequences."""
    return Scenario(
        workers=config.rollout.workers,
        slots=config.rollout.max_concurrent_sequences,
        prompts=config.algorithm.prompts_per_step,
        samples=config.algorithm.group_size,
        token_s=token_s,
        **settings,
    )


def measure(source: Path, config: Config, given: GivenTimes) -> Measured:
    """Return lengths and times from a run folder, or from a file of lengths and given times.

    Args:
        source: Run folder, or file with one length per line, or with lines of JSON that have the key `tokens`.
        config: The run to plan. The update of an earlier run is scaled by completions per step and learner rank.
        given: Times of the command line.

    Raises:
        InputError: The lengths or a time cannot be found, or are out of range.
    """
    for option, value in (("--token-s", given.token_s), ("--update-s", given.update_s)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value:g}: must be more than 0 seconds")
    if given.sync_s is not None and not 0 <= given.sync_s < float("inf"):
        raise InputError(f"--sync-s {given.sync_s:g}: must be at least 0 seconds")
    if source.is_dir():
        return _of_run(source, config, given)
    lengths = _lengths([source])
    if given.token_s is None or given.update_s is None:
        raise InputError(
            f"--lengths {source}: a file of lengths has no times. Give --token-s (seconds per token of a running "
            "completion) and --update-s (seconds of a learner update), or a run folder"
        )
    return Measured(
        source=str(source),
        lengths=lengths,
        token_s=given.token_s,
        update_s=given.update_s,
        sync_s=given.sync_s or 0.0,
        score_s=0.0,
    )


def _of_run(run: Path, config: Config, given: GivenTimes) -> Measured:
    if not (run / "config.yaml").is_file():
        raise InputError(f"--lengths {run}: not a run folder, since it has no config.yaml")
    theirs = load_config([run / "config.yaml"], [], files_here=False, earlier_run=True).config
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    if not files:
        raise InputError(
            f"--lengths {run}: no completions in {run / 'rollouts'}. A run saves them if tracking.save_rollouts is at "
            "least 1"
        )
    lengths = _lengths(files[-RECENT:])
    steps = list(_steps(run / METRICS_FILE))[-RECENT:]
    if not steps:
        raise InputError(f"--lengths {run}: {run / METRICS_FILE} has no step with time/generate_s and time/update_s")
    token_s = given.token_s
    if token_s is None:
        draw = resampled(lengths, theirs.algorithm.group_size, seed=1)
        if theirs.pipeline.max_staleness:
            raise InputError(
                f"--lengths {run}: with pipeline.max_staleness = {theirs.pipeline.max_staleness} its time/generate_s "
                "is only a part of the sampling. Give --token-s, the seconds per token of a running completion"
            )
        tokens = simulate(scenario_of(theirs, token_s=1.0, overcommit=theirs.rollout.overcommit), draw, 4).step_s
        token_s = median(step["time/generate_s"] / (1 + step.get("groups/refill_rounds", 0)) for step in steps) / tokens
    size = _completions_per_rank(config) / _completions_per_rank(theirs)
    own = median(step["time/update_s"] for step in steps) * size
    sync_s = median(step.get("time/sync_s", 0) + step.get("time/confirm_s", 0) for step in steps)
    return Measured(
        source=f"{run}, medians of {len(steps)} steps",
        lengths=lengths,
        token_s=token_s,
        update_s=own if given.update_s is None else given.update_s,
        sync_s=sync_s if given.sync_s is None else given.sync_s,
        score_s=median(step.get("time/score_s", 0) for step in steps),
    )


def _completions_per_rank(config: Config) -> float:
    return config.algorithm.prompts_per_step * config.algorithm.group_size / config.learner.ranks


def _steps(file: Path) -> Iterator[dict[str, float]]:
    """Yield the metrics of each step that sampled and trained."""
    for step in _lines(file, lambda line: parse(dict[str, float], line), "a JSON object of numbers"):
        if {"time/generate_s", "time/update_s"} <= step.keys():
            yield step


def _lengths(files: list[Path]) -> NDArray[np.int64]:
    """Read lengths, one per line."""
    allowed = 'a whole number of tokens, or JSON such as {"tokens": 812}'
    lengths = [length for file in files for length in _lines(file, _length, allowed)]
    if not lengths:
        raise InputError(f"{files[0]}: no length in it. Each line must be {allowed}")
    return np.array(lengths)


def _length(line: str) -> int:
    length = int(line) if line.isdecimal() else parse(_Row, line)["tokens"]
    if not 0 <= length <= 10**9:
        raise ValueError("out of range")
    return max(1, length)  # a slot is taken even for an empty completion


def _lines(file: Path, read: Callable[[str], T], allowed: str) -> Iterator[T]:
    """Yield what each line of a file holds, without empty lines."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield read(line.strip())
            except ValueError as error:
                raise InputError(f"{file}, line {number}: {line.strip()[:60]!r} is not {allowed}") from error

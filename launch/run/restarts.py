"""A learner that is lost is started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from launch.terminal.printing import say
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_manifest
from maxpo.config import Config
from maxpo.errors import LearnerLostError
from maxpo.loop.state import RunResult


def with_restarts(
    attempt: Callable[[Path | None, int | None], RunResult],
    source: Path | None,
    checkpoints: Checkpoints,
    restart: Callable[[], None],
    config: Config,
    console: Console,
) -> RunResult:
    """Train, and where the learner is lost, start it again from the newest good checkpoint, or from the beginning.

    Args:
        attempt: trains from a checkpoint, or from the beginning, after cutting the log after a step (None: it is new).
        source: the checkpoint of the first attempt.
        checkpoints: where the run saves.
        restart: starts the learner again.
        config: says how often, `learner.max_restarts`.
        console: where it is said.
    """
    step = None if source is None else read_manifest(source)["step"]
    lost: LearnerLostError | None = None
    for left in reversed(range(config.learner.max_restarts + 1)):
        try:
            if lost is not None:
                restart()
                # Only now: a write in the background may have waited for a rank that hung.
                checkpoints.abandon()
                newest, _ = checkpoints.newest_good()
                # A run that began with a checkpoint of another run, and has none of its own yet, begins there again.
                if newest is not None:
                    source, step = newest, read_manifest(newest)["step"]
                elif source is None:
                    step = -1
                text = f"going on from {source}" if source else "going on from the beginning"
                say(console, text)
            return attempt(source, step)
        except LearnerLostError as error:
            if not left:
                raise
            lost = error
            text = f"{error}\nstarting the learner again; {left - 1} restarts are left"
            say(console, text)
    raise AssertionError("unreachable")

"""Restarts of a lost learner."""

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
    """Train. Whenever the learner is lost, start it again from the newest good checkpoint, or from the beginning.

    Args:
        attempt: trains from a checkpoint (None: from the beginning), and first removes what the log has after a step
            (None: a new log).
        source: the checkpoint of the first attempt.
        checkpoints: the checkpoints of the run.
        restart: starts the learner again.
        config: holds the limit, `learner.max_restarts`.
        console: gets a line for each restart.

    Raises:
        LearnerLostError: the learner was lost once more than `learner.max_restarts`.
    """
    step = None if source is None else read_manifest(source)["step"]
    lost: LearnerLostError | None = None
    for left in reversed(range(config.learner.max_restarts + 1)):
        try:
            if lost is not None:
                restart()
                # After the restart, since a write in the background may have waited for a rank that hung.
                checkpoints.abandon()
                newest, _ = checkpoints.newest_good()
                # Without a checkpoint of its own, a run that began with one of another run begins there again.
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

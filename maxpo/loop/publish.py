"""New weights reach the engines."""

from __future__ import annotations

from maxpo.errors import LearnerLostError, RemoteError
from maxpo.protocols import Learner, Rollouts
from maxpo.timing import timed

PUBLISH_AGAIN = 3
"""Times that one version is sent again after losses of engines; then its error is no accident."""


def publish(rollouts: Rollouts, learner: Learner) -> dict[str, float]:
    """Send the learner's weights to every engine and have each confirm what it got.

    Where an engine dies meanwhile, the same version is sent to those that are there then."""
    again = 0
    while True:
        try:
            manifest = learner.publish(rollouts.receivers(), again=again > 0)
            break
        except LearnerLostError:
            raise
        except RemoteError:
            if again == PUBLISH_AGAIN or not rollouts.replace_lost():
                raise
            again += 1
    timing: dict[str, float] = {}
    with timed(timing, "time/confirm_s"):
        rollouts.confirm(manifest)
    return dict(manifest.metrics) | timing | {"weights/version": float(manifest.version)}

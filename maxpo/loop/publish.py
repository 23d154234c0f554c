"""Publication of new weights to the engines."""

from __future__ import annotations

from maxpo.errors import LearnerLostError, RemoteError
from maxpo.loop.observer import Observer
from maxpo.protocols import Learner, Rollouts
from maxpo.timing import timed

PUBLISH_AGAIN = 3
"""Number of retries of one version after engines died. Then the error is raised."""


def publish(rollouts: Rollouts, learner: Learner, observer: Observer) -> dict[str, float]:
    """Send the learner's weights to every engine, and have each engine confirm version, checksums and what it computes.

    If an engine dies meanwhile, send the same version again to the engines that are alive then.
    """
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
        if sentence := rollouts.confirm(manifest):
            observer.note(sentence)
    return dict(manifest.metrics) | timing | {"weights/version": float(manifest.version)}

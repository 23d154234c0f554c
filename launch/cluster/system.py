"""A whole system, started and ended in the right order: cluster, engines, learner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.cluster.placement import Placement, ResourceError, place
from launch.cluster.placement_groups import Room, room_for
from launch.cluster.ray_cluster import cluster, own_logs
from learner.group import LearnerGroup
from maxpo.config import Config
from maxpo.errors import RunError
from rollout.pool import RolloutPool


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Engines and learner, ready; nothing is published yet."""

    rollouts: RolloutPool
    learner: LearnerGroup
    places: Placement
    room: Room
    parameters: int
    """Of the model."""

    def restart_learner(self) -> None:
        """After LearnerLostError: a learner as it was at the start, and engines that can take its weights."""
        self.learner.shutdown()
        try:
            self.room.wait(learner_only=True)
        except ResourceError as error:
            raise RunError(str(error)) from error
        self.rollouts.learner_restarts()
        self.learner.restart()


@contextmanager
def system(config: Config, log_folder: Path) -> Iterator[System]:
    """Start what a training needs, and end it whatever happens.

    The workers' output ends up in `log_folder`; that on a running cluster stays in Ray's logs on each node.
    """
    with cluster(config, log_folder) as gpus:
        places = place(config, gpus=gpus)
        logs = own_logs(config, log_folder)
        with room_for(places, config) as room, ExitStack() as ending:
            rollouts = RolloutPool(config, places.rollout_device, places.sync_backend, room.engine, logs)
            ending.callback(rollouts.shutdown)
            learner = LearnerGroup(config, places.learner_device, places.sync_backend, room.rank, logs)
            ending.callback(learner.shutdown)
            rollouts.begin_start()
            if places.sync_backend == "ipc":
                # vLLM measures the free memory of a GPU while it starts, so nothing else may come or go on it.
                rollouts.finish_start()
            learner.begin_start()
            parameters = learner.finish_start()
            rollouts.finish_start()
            rollouts.republish = lambda receivers: learner.publish(receivers, again=True)
            yield System(rollouts=rollouts, learner=learner, places=places, room=room, parameters=parameters)

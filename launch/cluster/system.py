"""The parts of a training run, started and ended in the right order: cluster, engines, learner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.cluster.placement import Placement, ResourceError, place
from launch.cluster.placement_groups import PlacementGroups, placement_groups
from launch.cluster.ray_cluster import cluster, own_logs
from learner.group import LearnerGroup
from maxpo.config import Config
from maxpo.errors import RunError
from maxpo.runtime.heap import freeze_heap
from rollout.pool import RolloutPool


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Engines and learner, started. No weights are published yet."""

    rollouts: RolloutPool
    learner: LearnerGroup
    placement: Placement
    groups: PlacementGroups
    parameters: int
    """Number of parameters of the model."""

    def restart_learner(self) -> None:
        """Start the learner again after a LearnerLostError, and let the engines receive weights from it.

        Raises:
            RunError: the cluster no longer has the resources of the learner.
        """
        self.learner.shutdown()
        try:
            self.groups.wait(learner_only=True)
        except ResourceError as error:
            raise RunError(str(error)) from error
        self.rollouts.learner_restarts()
        self.learner.restart()


@contextmanager
def system(config: Config, log_folder: Path) -> Iterator[System]:
    """Start everything that a training needs, and end it whatever happens.

    The output of the workers goes to `log_folder`. On a running cluster it stays in Ray's logs on each node.
    """
    with cluster(config, log_folder) as gpus:
        placement = place(config, gpus=gpus)
        logs = own_logs(config, log_folder)
        with placement_groups(placement, config) as groups, ExitStack() as ending:
            rollouts = RolloutPool(config, placement.rollout_device, placement.sync_backend, groups.engine, logs)
            ending.callback(rollouts.shutdown)
            learner = LearnerGroup(config, placement.learner_device, placement.sync_backend, groups.rank, logs)
            ending.callback(learner.shutdown)
            rollouts.begin_start()
            if placement.sync_backend == "ipc":
                # vLLM measures the free memory of a GPU while it starts, so no other process may change it.
                rollouts.finish_start()
            learner.begin_start()
            parameters = learner.finish_start()
            rollouts.finish_start()
            rollouts.logprobs = learner.logprobs
            rollouts.republish = lambda receivers: learner.publish(receivers, again=True)
            freeze_heap()
            yield System(rollouts=rollouts, learner=learner, placement=placement, groups=groups, parameters=parameters)

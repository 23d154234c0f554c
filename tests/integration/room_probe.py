"""Run on a node of a cluster with 4 GPUs that are only said to be there: which actor gets which. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ray

from launch.cluster.placement import Placement, ResourceError
from launch.cluster.placement_groups import PlacementGroups
from maxpo.config import ClusterConfig


class Probe:
    def gpus(self) -> list[str]:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")


def gpus_of(colocated: bool, ranks: int, engines: int, each: int, timeout_s: float = 60.0) -> dict[str, Any]:
    places = Placement(
        learner_device="cuda",
        rollout_device="cuda",
        sync_backend="ipc" if colocated else "nccl",
        colocated=colocated,
        ranks=ranks,
        engines=engines,
        gpus_per_engine=each,
        learner_env={"WHO": "rank"},
        rollout_env={"WHO": "engine"},
    )
    room = PlacementGroups(places, ClusterConfig(node_timeout_s=timeout_s))
    try:
        room.wait()
        remote: Any = ray.remote(Probe)
        engine_actors = [remote.options(**room.engine(i)).remote() for i in range(engines)]
        rank_actors = [remote.options(**room.rank(i)).remote() for i in range(ranks)]
        # A rank that is started again must find the same GPU.
        ray.kill(rank_actors[0])
        rank_actors[0] = remote.options(**room.rank(0)).remote()
        found = {
            "engines": ray.get([actor.gpus.remote() for actor in engine_actors], timeout=30),
            "ranks": ray.get([actor.gpus.remote() for actor in rank_actors], timeout=30),
            "where": room.describe(),
        }
        for actor in engine_actors + rank_actors:
            ray.kill(actor)
        return found
    except ResourceError as error:
        return {"error": str(error)}
    finally:
        room.release()


ray.init(address=sys.argv[1], log_to_driver=False)
print(
    json.dumps(
        {
            "colocated": gpus_of(True, ranks=4, engines=2, each=2),
            "disaggregated": gpus_of(False, ranks=2, engines=1, each=2),
            "too large": gpus_of(False, ranks=1, engines=1, each=8, timeout_s=3.0),
        }
    )
)

"""Where the actors of a run are: Ray placement groups for learner and engines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.cluster.placement import Placement, ResourceError
from maxpo.config import ClusterConfig, Config
from maxpo.runtime.ray_calls import actor_is_lost
from maxpo.runtime.waits import SIGNAL_S, waiting

CPU_SHARE = 0.01
"""CPUs that an actor asks Ray for: its processes share the cores of the node, and Ray must not queue them."""


class _Holder:
    """Takes the GPUs of a bundle, so that learner ranks and engine can both be told to use them."""

    def gpus(self) -> list[str]:
        """As CUDA_VISIBLE_DEVICES has them."""
        return [str(gpu) for gpu in ray.get_gpu_ids()]


class Room:
    """The placement groups of a run, and from them the Ray options of every actor.

    Disaggregated there are two groups, with a bundle for each learner rank and for each engine; colocated there is one,
    with a bundle for each engine and its ranks. On GPUs the bundles are packed onto as few nodes as possible, on CPU
    they are spread. Where a node is lost, Ray moves its bundles to others that have room.
    """

    def __init__(self, places: Placement, cluster: ClusterConfig) -> None:
        """Ask for the room; `wait` waits until it is there."""
        self._places, self._timeout_s = places, cluster.node_timeout_s
        self._on_gpus = places.rollout_device == "cuda"
        self._rank_gpus = 1 if places.learner_device == "cuda" else 0
        engine: dict[str, float] = {"CPU": CPU_SHARE, "GPU": places.gpus_per_engine}
        bundles = {"engines": [engine] * places.engines}
        if places.colocated:
            self._ranks_each = places.ranks // places.engines
            engine["CPU"] += CPU_SHARE * self._ranks_each
        elif places.ranks:
            bundles["learner"] = [{"CPU": CPU_SHARE, "GPU": self._rank_gpus}] * places.ranks
        strategy = "PACK" if self._on_gpus else "SPREAD"
        self._bundles = {name: [_without_zeros(b) for b in each] for name, each in bundles.items()}
        self._groups = {name: placement_group(each, strategy=strategy) for name, each in self._bundles.items()}
        self._order: dict[str, list[int]] = {}
        self._gpus: list[list[str]] = []
        self._holders: dict[int, Any] = {}

    def wait(self, *, learner_only: bool = False) -> None:
        """Wait until every bundle has its place, also after nodes were lost.

        Args:
            learner_only: the engines may wait on for theirs; no difference where colocated.

        Raises:
            ResourceError: it has none after `cluster.node_timeout_s`.
        """
        end = time.monotonic() + self._timeout_s
        for name, group in self._groups.items():
            if learner_only and name != "learner" and "learner" in self._groups:
                continue
            with waiting("finding room", lambda name=name: [name], self._timeout_s):
                while not group.wait(SIGNAL_S):
                    if time.monotonic() > end:
                        raise ResourceError(self._no_room(name))
            where = self._where(group)
            # Neighbouring ranks on one node, whatever order Ray has placed them in. Engines keep their bundles, since
            # those on other nodes than a lost one live on; ranks are all replaced together.
            if name == "learner" or name not in self._order:
                self._order[name] = sorted(where, key=lambda bundle: (where[bundle], bundle))
        if self._places.colocated and self._on_gpus:
            self._gpus = [self._ask_holder(engine, end) for engine in range(self._places.engines)]

    def rank(self, rank: int) -> dict[str, Any]:
        """Ray options of a learner rank's actor."""
        env = self._places.learner_env
        if not self._places.colocated:
            return self._options("learner", rank, env, gpus=self._rank_gpus)
        engine, place = divmod(rank, self._ranks_each)
        if self._on_gpus:
            env = env | _visible([self._gpus[engine][place]])
        return self._options("engines", engine, env, gpus=0)

    def engine(self, number: int) -> dict[str, Any]:
        """Ray options of a rollout worker's actor."""
        env, gpus = self._places.rollout_env, self._places.gpus_per_engine
        if self._places.colocated and self._on_gpus:
            env, gpus = env | _visible(self._gpus[number]), 0
        return self._options("engines", number, env, gpus=gpus)

    def describe(self) -> str:
        """Which actors each node has."""
        places, found = self._places, defaultdict[str, list[str]](list)
        where = {name: self._where(group) for name, group in self._groups.items()}
        for rank in range(places.ranks):
            name, index = ("engines", rank // self._ranks_each) if places.colocated else ("learner", rank)
            found[where[name][self._order[name][index]]].append(f"learner rank {rank}")
        for engine in range(places.engines):
            found[where["engines"][self._order["engines"][engine]]].append(f"rollout worker {engine}")
        return "\n".join(f"{node}: {', '.join(actors)}" for node, actors in sorted(found.items()))

    def release(self) -> None:
        """Give the room back."""
        for group in self._groups.values():
            remove_placement_group(group)

    def _options(self, group: str, index: int, env: dict[str, str], *, gpus: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self._groups[group], self._order[group][index])
        return {
            "num_cpus": CPU_SHARE,
            "num_gpus": gpus,
            "scheduling_strategy": strategy,
            "runtime_env": {"env_vars": env},
        }

    def _where(self, group: Any) -> dict[int, str]:
        """The address of the node of each bundle."""
        address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return {b: address.get(node, "?") for b, node in placement_group_table(group)["bundles_to_node_id"].items()}

    def _ask_holder(self, engine: int, end: float) -> list[str]:
        """The GPUs of an engine's bundle; asked of its holder, which is made anew where its node was lost."""
        for _ in range(2):
            if engine not in self._holders:
                options = self._options("engines", engine, {}, gpus=self._places.gpus_per_engine)
                remote: Any = ray.remote(_Holder)
                self._holders[engine] = remote.options(**options | {"num_cpus": 0}).remote()
            try:
                return ray.get(self._holders[engine].gpus.remote(), timeout=max(1.0, end - time.monotonic()))
            except Exception as error:
                if not (isinstance(error, GetTimeoutError) or actor_is_lost(error)):
                    raise
                ray.kill(self._holders.pop(engine))
        raise ResourceError(f"the GPUs of rollout worker {engine} are not there: their node may be lost")

    def _no_room(self, name: str) -> str:
        nodes = [(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        have = ", ".join(f"{at}: {r.get('GPU', 0):g} GPUs, {r.get('CPU', 0):g} CPUs" for at, r in sorted(nodes))
        each = " and ".join(f"{value:g} {kind}s" for kind, value in reversed(self._bundles[name][0].items()))
        return (
            f"after cluster.node_timeout_s = {self._timeout_s:g} s there is no room for {name}: "
            f"{len(self._bundles[name])} x ({each}), each on one node. The cluster has {have}; others may use a part"
        )


@contextmanager
def room_for(places: Placement, config: Config) -> Iterator[Room]:
    """Room for all actors of a run, given back at the end.

    Raises:
        ResourceError: see `Room.wait`.
    """
    room = Room(places, config.cluster)
    try:
        room.wait()
        yield room
    finally:
        room.release()


def _without_zeros(bundle: dict[str, float]) -> dict[str, float]:
    return {kind: value for kind, value in bundle.items() if value}


def _visible(gpus: list[str]) -> dict[str, str]:
    """Of an actor that Ray gives no GPU itself; without the second variable Ray would hide them all."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

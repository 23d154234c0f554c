"""Ray placement groups of a run: the nodes and GPUs of its learner ranks and engines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch.cluster.placement import Placement, ResourceError
from maxpo.config import ClusterConfig, Config
from maxpo.runtime.ray_calls import actor_is_lost
from maxpo.runtime.waits import SIGNAL_S, waiting

CPU_SHARE = 0.01
"""CPUs that an actor asks Ray for. Its processes share the cores of the node, and Ray must not queue them."""


class _Holder:
    """Actor that takes the GPUs of a bundle, so that learner ranks and an engine can both be pointed to them."""

    def gpus(self) -> list[str]:
        """Return the ids of the GPUs, as in CUDA_VISIBLE_DEVICES."""
        return [str(gpu) for gpu in ray.get_gpu_ids()]


class PlacementGroups:
    """The placement groups of a run, which give the Ray options of every actor.

    A disaggregated run has two groups: one with a bundle for each learner rank, one with a bundle for each engine. A
    colocated run has one group, with a bundle for each engine and its ranks. On GPUs the bundles are packed onto as
    few nodes as possible, on CPU they are spread. When a node is lost, Ray moves its bundles to nodes with free
    resources.
    """

    def __init__(self, placement: Placement, cluster: ClusterConfig) -> None:
        """Ask Ray for the groups. `wait` waits until they are placed."""
        self._placement, self._timeout_s = placement, cluster.node_timeout_s
        self._on_gpus = placement.rollout_device == "cuda"
        self._rank_gpus = 1 if placement.learner_device == "cuda" else 0
        engine: dict[str, float] = {"CPU": CPU_SHARE, "GPU": placement.gpus_per_engine}
        bundles = {"engines": [engine] * placement.engines}
        if placement.colocated:
            self._ranks_each = placement.ranks // placement.engines
            engine["CPU"] += CPU_SHARE * self._ranks_each
        elif placement.ranks:
            bundles["learner"] = [{"CPU": CPU_SHARE, "GPU": self._rank_gpus}] * placement.ranks
        strategy = "PACK" if self._on_gpus else "SPREAD"
        self._bundles = {name: [_without_zeros(b) for b in each] for name, each in bundles.items()}
        self._groups = {name: placement_group(each, strategy=strategy) for name, each in self._bundles.items()}
        self._order: dict[str, list[int]] = {}
        self._gpus: list[list[str]] = []
        self._holders: dict[int, Any] = {}

    def wait(self, *, learner_only: bool = False) -> None:
        """Wait until every bundle has a node, at the start and after nodes were lost.

        Args:
            learner_only: do not wait for the engines. Makes no difference in a colocated run.

        Raises:
            ResourceError: a bundle has no node after `cluster.node_timeout_s`.
        """
        end = time.monotonic() + self._timeout_s
        for name, group in self._groups.items():
            if learner_only and name != "learner" and "learner" in self._groups:
                continue
            with waiting("placing", lambda name=name: [name], self._timeout_s):
                while not group.wait(SIGNAL_S):
                    if time.monotonic() > end:
                        raise ResourceError(self._describe_shortage(name))
            nodes = self._nodes(group)
            # Neighbouring ranks go to one node, in whatever order Ray has placed the bundles. Engines keep their
            # bundles, since those on other nodes than a lost one live on. Ranks are all replaced together.
            if name == "learner" or name not in self._order:
                self._order[name] = sorted(nodes, key=lambda bundle: (nodes[bundle], bundle))
        if self._placement.colocated and self._on_gpus:
            self._gpus = [self._ask_holder(engine, end) for engine in range(self._placement.engines)]

    def rank(self, rank: int) -> dict[str, Any]:
        """Return the Ray options of a learner rank's actor."""
        env = self._placement.learner_env
        if not self._placement.colocated:
            return self._options("learner", rank, env, gpus=self._rank_gpus)
        engine, shard = divmod(rank, self._ranks_each)
        if self._on_gpus:
            env = env | _visible([self._gpus[engine][shard]])
        return self._options("engines", engine, env, gpus=0)

    def engine(self, number: int) -> dict[str, Any]:
        """Return the Ray options of a rollout worker's actor."""
        env, gpus = self._placement.rollout_env, self._placement.gpus_per_engine
        if self._placement.colocated and self._on_gpus:
            env, gpus = env | _visible(self._gpus[number]), 0
        return self._options("engines", number, env, gpus=gpus)

    def describe(self) -> str:
        """Return one line for each node, with its actors."""
        actors: defaultdict[str, list[str]] = defaultdict(list)
        nodes = {name: self._nodes(group) for name, group in self._groups.items()}
        for rank in range(self._placement.ranks):
            colocated = self._placement.colocated
            name, index = ("engines", rank // self._ranks_each) if colocated else ("learner", rank)
            actors[nodes[name][self._order[name][index]]].append(f"learner rank {rank}")
        for engine in range(self._placement.engines):
            actors[nodes["engines"][self._order["engines"][engine]]].append(f"rollout worker {engine}")
        return "\n".join(f"{node}: {', '.join(names)}" for node, names in sorted(actors.items()))

    def release(self) -> None:
        """Give the resources back to Ray."""
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

    def _nodes(self, group: PlacementGroup) -> dict[int, str]:
        """Return the address of each bundle's node."""
        address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        return {b: address.get(node, "?") for b, node in placement_group_table(group)["bundles_to_node_id"].items()}

    def _ask_holder(self, engine: int, end: float) -> list[str]:
        """Return the GPUs of an engine's bundle. Their holder is started again if its node was lost."""
        for _ in range(2):
            if engine not in self._holders:
                options = self._options("engines", engine, {}, gpus=self._placement.gpus_per_engine)
                remote: Any = ray.remote(_Holder)
                self._holders[engine] = remote.options(**options | {"num_cpus": 0}).remote()
            try:
                return ray.get(self._holders[engine].gpus.remote(), timeout=max(1.0, end - time.monotonic()))
            except Exception as error:
                if not (isinstance(error, GetTimeoutError) or actor_is_lost(error)):
                    raise
                ray.kill(self._holders.pop(engine))
        raise ResourceError(f"the GPUs of rollout worker {engine} do not answer: their node may be lost")

    def _describe_shortage(self, name: str) -> str:
        nodes = [(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        have = ", ".join(f"{at}: {r.get('GPU', 0):g} GPUs, {r.get('CPU', 0):g} CPUs" for at, r in sorted(nodes))
        each = " and ".join(f"{value:g} {kind}s" for kind, value in reversed(self._bundles[name][0].items()))
        return (
            f"after cluster.node_timeout_s = {self._timeout_s:g} s the cluster has no room for {name}: "
            f"{len(self._bundles[name])} x ({each}), each on one node. The cluster has {have}; other jobs may use a "
            "part of that"
        )


@contextmanager
def placement_groups(placement: Placement, config: Config) -> Iterator[PlacementGroups]:
    """Hold the placement groups of a run, and release them at the end.

    Raises:
        ResourceError: see `PlacementGroups.wait`.
    """
    groups = PlacementGroups(placement, config.cluster)
    try:
        groups.wait()
        yield groups
    finally:
        groups.release()


def _without_zeros(bundle: dict[str, float]) -> dict[str, float]:
    return {kind: value for kind, value in bundle.items() if value}


def _visible(gpus: list[str]) -> dict[str, str]:
    """Return the variables of an actor that Ray gives no GPU. Without the second one, Ray would hide all GPUs."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

"""Who gets which bundle, before and after a node is lost; Ray's side is a table that the test writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import launch.cluster.placement_groups
from launch.cluster.placement import Placement, ResourceError
from launch.cluster.placement_groups import PlacementGroups
from maxpo.config import ClusterConfig


class Tables:
    """Which node each bundle of a group is on; a group that waits has none for one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tables: dict[int, str]) -> None:
        self.of, self._names = tables, iter(("engines", "learner"))
        nodes = [{"NodeID": n, "NodeManagerAddress": n, "Alive": True, "Resources": {"CPU": 4.0}} for n in "abcd"]
        monkeypatch.setattr(launch.cluster.placement_groups, "ray", SimpleNamespace(nodes=lambda: nodes))
        monkeypatch.setattr(launch.cluster.placement_groups, "placement_group", self._group)
        monkeypatch.setattr(
            launch.cluster.placement_groups,
            "placement_group_table",
            lambda group: {"bundles_to_node_id": group.table()},
        )
        monkeypatch.setattr(
            launch.cluster.placement_groups, "PlacementGroupSchedulingStrategy", lambda group, bundle: bundle
        )

    def _group(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        name = next(self._names)
        assert strategy == "SPREAD"  # as on CPU
        return SimpleNamespace(table=lambda: self.of[name], wait=lambda seconds: "" not in self.of[name].values())


def places(ranks: int, engines: int) -> Placement:
    return Placement(
        learner_device="cpu",
        rollout_device="cpu",
        sync_backend="gloo",
        colocated=False,
        ranks=ranks,
        engines=engines,
        gpus_per_engine=0,
        learner_env={},
        rollout_env={},
    )


def bundles_of(room: PlacementGroups) -> tuple[list[int], list[int]]:
    return tuple([make(i)["scheduling_strategy"] for i in range(3)] for make in (room.rank, room.engine))  # type: ignore


def test_after_a_loss_engines_keep_their_bundles_and_ranks_are_put_in_order_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = Tables(monkeypatch, engines={0: "b", 1: "c", 2: "b"}, learner={0: "c", 1: "b", 2: "c"})
    room = PlacementGroups(places(3, 3), ClusterConfig())
    room.wait()
    assert bundles_of(room) == ([1, 0, 2], [0, 2, 1])
    assert room.describe() == (
        "b: learner rank 0, rollout worker 0, rollout worker 1\nc: learner rank 1, learner rank 2, rollout worker 2"
    )
    # Node c is lost, and what was there goes to a, which comes first.
    tables.of = {"engines": {0: "b", 1: "a", 2: "b"}, "learner": {0: "a", 1: "b", 2: "a"}}
    room.wait()
    assert bundles_of(room) == ([0, 2, 1], [0, 2, 1])
    assert room.describe() == (
        "a: learner rank 0, learner rank 1, rollout worker 2\nb: learner rank 2, rollout worker 0, rollout worker 1"
    )


def test_a_learner_does_not_wait_for_room_for_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(monkeypatch, engines={0: "a"}, learner={0: "a"})
    room = PlacementGroups(places(1, 1), ClusterConfig(node_timeout_s=0.0))
    room.wait()
    tables.of["engines"][0] = ""
    room.wait(learner_only=True)
    with pytest.raises(ResourceError, match=r"no room for engines: 1 x \(0.01 CPUs\), each on one node. .* a: 0 GPUs"):
        room.wait()
    tables.of = {"engines": {0: "a"}, "learner": {0: ""}}
    with pytest.raises(ResourceError, match="no room for learner"):
        room.wait(learner_only=True)

"""A small case of the benchmark of the driver: nothing is lost, and its figures agree with one another."""

from __future__ import annotations

import pytest

from benchmarks.control_plane import growth
from benchmarks.driver_case import STAGES, Case, run


def test_every_group_comes_back_and_the_figures_add_up() -> None:
    """`measure` itself raises where a group is missing or there twice."""
    case = Case(workers=4, hosts=2, groups=50, group_size=8, tokens=8, concurrent=32, steps=2, rate=1000.0)
    found = run(case)
    assert found["case"]["capacity"] == 4 * 5
    fewest, most, workers = found["groups_of_a_worker"]
    assert workers == 4
    assert 4 * fewest <= 2 * 50 <= 4 * most
    assert fewest >= 10  # every worker has its share
    for kind in ("cpu_s", "main_thread_s", "wall_s"):
        # Medians of two steps are means, so they add up.
        assert sum(found[kind][stage] for stage in STAGES) == pytest.approx(found[kind]["all"])
        assert all(found[kind][stage] > 0 for stage in STAGES)
    assert found["main_thread_s"]["all"] < min(found["cpu_s"]["all"], found["wall_s"]["all"])
    memory = found["memory_mib"]
    assert 0 < memory["before"] <= memory["peak"]
    assert len(memory["after_each_step"]) == 2
    assert found["bytes_per_group"] > 8 * 8 * 10


def test_growth_is_the_exponent_of_the_time_of_a_group() -> None:
    results = [
        {"case": {"workers": n, "groups": 10}, "cpu_s": {"generate": 10 * n**0.5, "all": 20.0, "workers": 0.003 * n}}
        for n in (1, 4, 16)
    ]
    fitted = growth(results, "workers")
    assert fitted["exponent of sampling CPU over workers"] == pytest.approx(0.5)
    assert fitted["exponent of all CPU over workers"] == pytest.approx(0.0, abs=1e-9)
    assert fitted["ms of each worker in each step"] == pytest.approx(3.0)
    assert growth(results[:1], "workers") == growth(results, "hosts") == {}

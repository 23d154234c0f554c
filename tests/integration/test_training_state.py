"""Master weights and optimizer state, saved and loaded by real DeepSpeed engines of any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import Learned, Rounds
from tests.integration.learner_ranks import job
from tests.integration.test_gradients import make_batch

LAYOUTS = [(0, "float32"), *((stage, dtype) for stage in (1, 2, 3) for dtype in ("float32", "bfloat16", "float16"))]
BATCHES = [make_batch(seed) for seed in range(3)]


def layout_job(layout: tuple[int, str], batches: list[Any], **paths: Path) -> dict[str, Any]:
    stage, dtype = layout
    settings = {"aggregation": "constant", "budget": 100, "stage": stage, "dtype": dtype, "schedule": "linear"}
    return job(batches, **settings) | {key: str(path) for key, path in paths.items()}


def name(ranks: int, layout: tuple[int, str]) -> str:
    return f"{ranks}-{layout[0]}-{layout[1]}"


def making(ranks: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Two batches (saved), three batches in one go, and the third after a load, of each layout."""
    jobs: dict[str, dict[str, Any]] = {}
    for layout in LAYOUTS:
        own = name(ranks, layout)
        jobs[f"{own} saved"] = layout_job(layout, BATCHES[:2], save=folder / own)
        jobs[f"{own} whole"] = layout_job(layout, BATCHES)
        jobs[f"{own} resumed"] = layout_job(layout, BATCHES[2:], load=folder / own)
    jobs[f"{ranks} fresh"] = layout_job((2, "float32"), [], save=folder / f"{ranks}-fresh")
    return jobs


def loading(ranks: int, others: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Loads of the states that `others` ranks saved, in each layout that may take them over."""
    jobs: dict[str, dict[str, Any]] = {}
    for there in LAYOUTS:
        for here in LAYOUTS:
            if there[1] == here[1] == "float32" or there[0] == here[0]:
                source, move = name(others, there), f"{name(others, there)} in {name(ranks, here)}"
                jobs[move] = layout_job(here, [], load=folder / source, save=folder / move)
    return jobs


def rank_jobs(folder: Path) -> Rounds:
    one_batch = layout_job((3, "float32"), BATCHES[:1])
    fresh = {"fresh in 1": layout_job((3, "float32"), BATCHES[:1], load=folder / "2-fresh")}
    return (
        making(1, folder) | {"one batch": one_batch},
        making(2, folder) | loading(2, 1, folder),
        loading(1, 2, folder) | fresh | going_back(folder),
    )


def going_back(folder: Path) -> dict[str, dict[str, Any]]:
    """One batch from the start, and the same by an engine that has trained and then loads the start, of each layout."""
    jobs: dict[str, dict[str, Any]] = {}
    for layout in LAYOUTS:
        start = folder / "2-fresh"
        jobs[f"{layout} straight"] = layout_job(layout, BATCHES[:1], load=start)
        jobs[f"{layout} back"] = layout_job(layout, BATCHES[1:], load=start) | {"go_back": BATCHES[:1]}
    return jobs


@pytest.fixture(scope="module")
def folder(learned: Learned) -> Path:
    return learned.folder


@pytest.fixture(scope="module")
def weights(learned: Learned) -> dict[str, dict[str, torch.Tensor]]:
    """Weights at the end of each job."""
    return {name: result[1] for name, result in learned.results.items()}


def contents(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors, json.loads((folder / "meta.json").read_text())


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_equals_never_stopped_bit_for_bit(
    ranks: int, layout: tuple[int, str], weights: dict[str, dict[str, torch.Tensor]]
) -> None:
    own = name(ranks, layout)
    assert_equal(weights[f"{own} resumed"], weights[f"{own} whole"])
    assert any(not torch.equal(w, weights[f"{own} saved"][key]) for key, w in weights[f"{own} whole"].items())


def test_every_layout_takes_over_the_state_of_every_other(
    weights: dict[str, dict[str, torch.Tensor]], folder: Path
) -> None:
    moves = [key for key in weights if " in " in key and "fresh" not in key]
    assert len(moves) == 2 * (4 * 4 + 3 * 8)  # any stages in float32; the same stage from and to 16 bits
    for move in moves:
        there, _, here = move.partition(" in ")
        formats = there.rpartition("-")[2], here.rpartition("-")[2]
        if formats[0] == formats[1]:
            assert_equal(weights[move], weights[f"{there} saved"])
        before, about = contents(folder / there)
        after, about_after = contents(folder / move)
        assert_equal(after, before)
        assert any(float(t.abs().max()) > 0 for key, t in after.items() if key.endswith("exp_avg_sq"))
        assert about_after["adam_step"] == 2.0
        scale = {"loss_scale": [65536.0, 2.0 if formats[0] == "float16" else 0.0]} if formats[1] == "float16" else {}
        assert about_after["extra"] == {"optimizer_steps": 2} | scale
        assert about_after["names"] == about["names"]


def test_a_state_from_before_the_first_step(weights: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
    assert contents(folder / "2-fresh")[1]["adam_step"] == 0
    assert_equal(weights["fresh in 1"], weights["one batch"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_engine_that_has_trained_goes_back_to_the_start(
    layout: tuple[int, str], weights: dict[str, dict[str, torch.Tensor]]
) -> None:
    assert_equal(weights[f"{layout} back"], weights[f"{layout} straight"])

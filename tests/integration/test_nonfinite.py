"""Optimizer steps whose loss or gradient is not finite are refused by real DeepSpeed engines and leave no trace."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from maxpo.config import LearnerConfig
from maxpo.types import StepBatch
from maxpo.weights.rendezvous import serve_store
from tests.integration.conftest import Learned, Rounds
from tests.integration.learner_ranks import job
from tests.integration.test_gradients import make_batch
from tests.integration.test_training_state import LAYOUTS, assert_equal, contents

GOOD = [make_batch(0), make_batch(1)]


def spoilt(batch: StepBatch, at: int = 0) -> StepBatch:
    """One sampler log-probability of a group is not a number, so loss and gradient of its row are not either."""
    scored = batch.groups[at]
    first, *others = scored.group.completions
    nothing, mask = first.logprobs.copy(), np.array(first.loss_mask)
    nothing[0], mask[0] = math.nan, True
    bad = replace(first, logprobs=nothing, loss_mask=mask)
    group = replace(scored, group=replace(scored.group, completions=(bad, *others)))
    return replace(batch, groups=(*batch.groups[:at], group, *batch.groups[at + 1 :]))


# One of each kind before anything was learned and after it, then two in a row.
BATCHES = [make_batch(5), GOOD[0], spoilt(make_batch(6)), make_batch(7), make_batch(8), GOOD[1]]
POISON = {0: "gradient", 3: "loss", 4: "gradient"}
REFUSED = (0, 2, 3, 4)
HALVES = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
CASES: dict[str, tuple[int, int, str, dict[str, Any]]] = {
    f"1-{stage}-{dtype}": (1, stage, dtype, {}) for stage, dtype in LAYOUTS
}
# Offloaded, and with gradients added up in bfloat16, for which DeepSpeed keeps other buffers.
CASES |= {f"1-{stage}-{dtype}-offloaded": (1, stage, dtype, OFFLOAD) for stage, dtype in LAYOUTS if dtype[-2:] == "16"}
CASES |= {f"1-{stage}-bfloat16-halves": (1, stage, "bfloat16", HALVES) for stage in (1, 2, 3)}
CASES |= {
    f"2-{stage}-{dtype}": (2, stage, dtype, {})
    for stage, dtype in ((0, "float32"), (1, "bfloat16"), (2, "float32"), (2, "float16"), (3, "bfloat16"))
}
OVERFLOWS = {"1": (1, 1), "2": (1, 2), "3": (1, 3), "2 on 2 ranks": (2, 2)}
"""Ranks and stages in float16."""
NO_GRADIENT = "the gradient is not finite; no optimizer step was taken"


def rank_jobs(folder: Path) -> Rounds:
    """Runs with and without steps that are refused; their states after each batch are saved in the folder."""
    one, two = (dict[str, Any](), dict[str, Any]())
    for name, (world, stage, dtype, extra) in CASES.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(extra))
        settings = {"aggregation": "constant", "budget": 100, "stage": stage, "dtype": dtype, "schedule": "linear"}
        # DeepSpeed takes other paths without clipping.
        settings |= {"on_nonfinite": "skip", "grad_clip": 0.0 if stage == 2 else 1.0, "deepspeed": str(file)}
        jobs = one if world == 1 else two
        # In float16 only the loss tells such a gradient from one that the loss scale has made too large.
        poison = dict.fromkeys(POISON, "loss") if dtype == "float16" else POISON
        jobs[f"{name} spoilt"] = job(BATCHES, **settings) | {"poison": poison}
        jobs[f"{name} good"] = job(GOOD, **settings)
    for stage in (0, 2):
        stopping = job(BATCHES[:4], aggregation="constant", budget=100, stage=stage)
        raises = dict.fromkeys((0,), NO_GRADIENT)
        raises |= dict.fromkeys((2, 3), "the loss is not finite; no optimizer step was taken")
        one[f"stop {stage}"] = stopping | {"poison": POISON, "raises": raises}
    one["halves"] = job([spoilt(make_batch(0, 4), 3)], minibatches=2, budget=100, on_nonfinite="skip")
    for name, (world, stage) in OVERFLOWS.items():
        jobs = one if world == 1 else two
        settings = {"budget": 100, "stage": stage, "dtype": "float16"}
        jobs[f"overflow {name}"] = job([GOOD[0], BATCHES[0], GOOD[1]], **settings) | {"poison": {1: "gradient"}}
        lowest = {"poison": {0: "gradient"}, "raises": {0: NO_GRADIENT}, "loss_scale": [1.0, 7.0]}
        jobs[f"lowest {name}"] = job(BATCHES[:1], **settings) | lowest
    for jobs in (one, two):
        for name in jobs:
            jobs[name]["save_each"] = str(folder / name)
    return one, two, {}


@pytest.fixture(scope="module")
def folder(learned: Learned) -> Path:
    return learned.folder


@pytest.fixture(scope="module")
def metrics(learned: Learned) -> dict[str, list[dict[str, float]]]:
    return {name: result[2] for name, result in learned.results.items()}


def assert_same_state(a: Path, b: Path) -> None:
    (tensors, about), (others, about_others) = contents(a), contents(b)
    assert any(key.endswith("/forward") for key in tensors)
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    assert_equal(tensors, others)
    assert about == about_others


@pytest.mark.parametrize("name", CASES)
def test_a_refused_step_leaves_no_trace(name: str, folder: Path, metrics: dict[str, list[dict[str, float]]]) -> None:
    taken = 0
    for i, figures in enumerate(metrics[f"{name} spoilt"]):
        taken += i not in REFUSED
        assert_same_state(folder / f"{name} spoilt" / str(i + 1), folder / f"{name} good" / str(taken))
        assert figures["train/refused_steps"] == float(i in REFUSED)
        assert figures["train/optimizer_steps"] == taken
        assert ("train/loss" in figures) == ("train/grad_norm" in figures) == (i not in REFUSED)
        assert all(map(math.isfinite, figures.values()))
    assert taken == len(GOOD)
    before, after = (contents(folder / f"{name} good" / str(i))[0] for i in (0, 2))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.endswith("/forward"))


@pytest.mark.parametrize("stage", [0, 2])
def test_stop_mode_raises_and_leaves_the_state_as_it_was(
    stage: int, folder: Path, metrics: dict[str, list[dict[str, float]]]
) -> None:
    states = folder / f"stop {stage}"
    assert [m["train/refused_steps"] for m in metrics[states.name]] == [0.0]  # of the one batch that did not raise
    assert_same_state(states / "0", states / "1")
    assert_same_state(states / "2", states / "3")
    assert_same_state(states / "2", states / "4")
    assert contents(states / "2")[1]["adam_step"] == 1


def test_only_the_minibatch_that_is_not_finite_is_left_out(metrics: dict[str, list[dict[str, float]]]) -> None:
    (figures,) = metrics["halves"]
    assert (figures["train/refused_steps"], figures["train/optimizer_steps"]) == (1.0, 1.0)
    assert all(map(math.isfinite, figures.values()))
    assert (
        0 < figures["train/tokens"] < sum(c.loss_tokens for g in make_batch(0, 4).groups for c in g.group.completions)
    )
    assert figures["train/grad_norm"] > 0


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_of_the_loss_scale_lowers_the_scale_and_stops_nothing(
    name: str, folder: Path, metrics: dict[str, list[dict[str, float]]]
) -> None:
    figures = metrics[f"overflow {name}"]
    assert [m["train/overflow_steps"] for m in figures] == [0, 1, 0]
    assert [m["train/loss_scale"] for m in figures] == [65536, 32768, 32768]
    assert [m["train/refused_steps"] for m in figures] == [0, 0, 0]
    assert [m["train/optimizer_steps"] for m in figures] == [1, 1, 2]
    states = folder / f"overflow {name}"
    before, skipped, after = (contents(states / str(i)) for i in (1, 2, 3))
    assert_equal(before[0], skipped[0])
    assert any(not torch.equal(before[0][key], after[0][key]) for key in before[0] if key.endswith("/forward"))
    scales = [about["extra"]["loss_scale"] for _, about in (before, skipped, after)]
    assert scales == [[65536, 1], [32768, 0], [32768, 1]]


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_at_the_lowest_loss_scale_is_a_gradient_that_is_not_finite(name: str, folder: Path) -> None:
    # That the update raises is checked where it runs.
    states = folder / f"lowest {name}"
    assert_same_state(states / "0", states / "1")


class Halves(torch.nn.Module):
    """Two layers, the second of which may be left out, as an expert that no token goes to."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, *, both: bool) -> torch.Tensor:
        return self.always(x).sum() + (self.sometimes(x).sum() if both else 0.0)


def _halves(_rank: int, out: str) -> None:
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", store=serve_store("127.0.0.1", 60)[0], rank=0, world_size=1)
    from learner.deepspeed_engine import TrainEngine

    norms: list[list[float | None]] = []
    for stage in range(4):
        config = LearnerConfig(lr=1e-3, dtype="float32", zero_stage=stage)
        engine = TrainEngine(Halves(), config, torch.device("cpu"))
        norms.append([])
        for value, both in ((1.0, True), (math.nan, True), (1.0, False)):
            engine.backward(engine.forward(torch.full((2, 4), value), both=both), last=True)
            norms[-1].append(engine.step(1e-3))
    torch.save(norms, out)
    dist.destroy_process_group()


def test_a_refused_gradient_is_gone_where_the_next_step_does_not_use_its_parameter(tmp_path: Path) -> None:
    mp.spawn(_halves, args=(str(tmp_path / "norms.pt"),))
    # Of a layer: the gradient is 2 for each of 4 weights and the bias.
    want = [pytest.approx(math.sqrt(40)), None, pytest.approx(math.sqrt(20))]
    assert torch.load(tmp_path / "norms.pt") == [want] * 4

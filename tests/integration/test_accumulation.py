"""Gradients of 16 bits are added up in float32, and float16 has a loss scale that changes no gradient."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from maxpo.config import LearnerConfig
from maxpo.weights.rendezvous import join_store, serve_store

MICROBATCHES = 64
SIZE = 48
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    f"{stage}-{dtype}{'-offloaded' * bool(extra)}": (stage, dtype, extra)
    for stage in (1, 2, 3)
    for dtype in ("bfloat16", "float16")
    for extra in ({}, OFFLOAD)
}
STEPS = 5


class Given(torch.nn.Module):
    """A model whose gradient is its input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.matrix = (torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in ((SIZE,), (7, 5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As in `token_logprobs`, what comes after the model is float32.
        return (self.weight * x).sum().float() + (self.matrix * x[:35].view(7, 5)).sum().float()


def inputs(rank: int, dtype: torch.dtype, step: int = 0) -> list[torch.Tensor]:
    """One large gradient, then small ones: below half a unit in the last place of bfloat16, together 1/8 of the sum.

    All are exact in both formats. They have the same sign, as a gradient that many rows agree on. Those of the second
    rank are as small as the small ones of the first.
    """
    draw = torch.Generator().manual_seed(97 * step + rank)
    large = 2.0 ** -torch.randint(2, 4, (SIZE,), generator=draw).float() * 2.0 ** (-9 * rank)
    small = large * 2.0**-9
    return [(large if i == 0 else small).to(dtype) for i in range(MICROBATCHES)]


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=join_store("127.0.0.1", port, 60), rank=rank, world_size=world)
    import learner.loss_scale
    from learner.deepspeed_engine import TrainEngine

    learner.loss_scale.FIRST, learner.loss_scale.PATIENCE = 64.0, 2  # so that the scale doubles within the steps
    found: dict[str, Any] = {}
    for name, (stage, dtype, extra) in CASES.items():
        file = Path(folder, f"{rank}.json")
        file.write_text(json.dumps(extra))
        config = LearnerConfig(lr=1.0, dtype=dtype, zero_stage=stage, grad_clip=0.1, deepspeed=str(file))  # type: ignore[arg-type]
        engine = TrainEngine(Given(getattr(torch, dtype)), config, torch.device("cpu"))
        got: list[tuple[torch.Tensor, float | None, float]] = []
        for step in range(STEPS):
            rows = inputs(rank, getattr(torch, dtype), step)
            for i, row in enumerate(rows):
                engine.backward(engine.forward(row), last=i == len(rows) - 1)
            gradient = engine.full_gradient(engine.module.weight)  # type: ignore[arg-type]
            assert gradient is not None
            scale = engine.loss_scale.value if engine.loss_scale else 1.0
            got.append((gradient.double().clone(), engine.step(1e-3), scale))
        states: list[Any] = [s for s in engine.optimizer.state.values() if "exp_avg" in s]
        found[name] = got, sum(float(s["exp_avg"].double().square().sum()) for s in states)
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, {name: square for name, (_, square) in found.items()})
    if rank == 0:
        squares = {name: sum(own[name] for own in gathered) for name in CASES}
        torch.save({name: (found[name][0], squares[name]) for name in CASES}, Path(folder, f"{world}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    folder = tmp_path_factory.mktemp("accumulation")
    _store, port = serve_store("127.0.0.1", 60)
    mp.spawn(_rank, args=(request.param, port, str(folder)), nprocs=request.param)
    return request.param, torch.load(folder / f"{request.param}.pt")


def exact(world: int, dtype: str, step: int) -> torch.Tensor:
    """The sum over ranks and rows of the gradients of 16 bits, in float64."""
    rows = [row.double() for rank in range(world) for row in inputs(rank, getattr(torch, dtype), step)]
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("name", CASES)
def test_no_row_is_lost_in_the_sum_and_no_step_depends_on_the_loss_scale(name: str, ranks: tuple[int, Any]) -> None:
    world, found = ranks
    steps, square = found[name]
    moment = torch.zeros(SIZE + 35, dtype=torch.float64)
    for step, (gradient, norm, _) in enumerate(steps):
        want = exact(world, CASES[name][1], step)
        torch.testing.assert_close(gradient, want, rtol=1e-6, atol=0)
        whole = torch.cat([want, want[:35]])
        assert norm == pytest.approx(float(whole.norm()), rel=1e-5)
        moment = 0.9 * moment + 0.1 * whole * min(1.0, 0.1 / float(whole.norm()))  # what Adam gets is clipped
    assert square == pytest.approx(float(moment.square().sum()), rel=1e-4)
    scales = [scale for *_, scale in steps]
    assert scales == ([64, 64, 128, 128, 256] if CASES[name][1] == "float16" else [1] * STEPS)

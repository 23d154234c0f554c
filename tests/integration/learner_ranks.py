"""Runs real DeepSpeed ranks in plain processes; what the gradient tests start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from maxpo.config import AlgorithmConfig, LearnerConfig
from maxpo.transport import join_store, serve_store
from maxpo.types import StepBatch


def _rank(rank: int, world: int, port: int, model: str, jobs: Sequence[dict[str, Any]], out: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    from learner.engine import TrainEngine
    from learner.model import Policy, enable_gradient_checkpointing, load_language_model, parameters_by_name
    from learner.step import Updater

    results = []
    for job in jobs:
        learner: LearnerConfig = job["learner"]
        algorithm: AlgorithmConfig = job["algorithm"]
        lm: Any = load_language_model(job.get("model", model), getattr(torch, learner.dtype), trust_remote_code=False)
        calls: list[int] = []
        if learner.gradient_checkpointing:
            enable_gradient_checkpointing(lm)
        lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        engine = TrainEngine(Policy(lm), learner, torch.device("cpu"))
        reference = None
        if algorithm.kl_coef:
            reference = Policy(load_language_model(model, torch.float32, trust_remote_code=False))
            reference.requires_grad_(False)
        updater = Updater(
            engine,
            reference,
            learner,
            algorithm,
            rank=rank,
            temperature=job.get("temperature", 1.0),
            aggregation_constant=20.0,
            total_steps=10,
        )
        gradients: dict[str, torch.Tensor] = {}
        step = engine.step

        def capture(lr: float, engine: Any = engine, step: Any = step, gradients: dict[str, Any] = gradients) -> float:
            if not gradients:
                for name, parameter in parameters_by_name(engine.module).items():
                    gradients[name] = engine.full_gradient(parameter).clone()
            return step(lr)

        engine.step = capture
        state = engine.training_state(parameters_by_name(engine.module))
        if "load" in job:
            updater.optimizer_steps = state.load(Path(job["load"]))["optimizer_steps"]
        metrics = [updater.update(batch) for batch in job["batches"]]
        if "save" in job:
            folder = Path(job["save"])
            folder.mkdir(exist_ok=True)
            state.copy({"optimizer_steps": updater.optimizer_steps})(folder)
            dist.barrier()
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in parameters_by_name(engine.module).items():
            with torch.no_grad(), engine.full_parameters([parameter]):
                weights[name] = parameter.detach().float().clone()
        if metrics:
            metrics[0]["forward_calls"] = float(len(calls))
        results.append((gradients, weights, metrics))
    if rank == 0:
        # Through a file: tensors in a queue would travel by descriptors that die with this process.
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(world: int, model: str, jobs: Sequence[dict[str, Any]], out: str) -> list[tuple[Any, Any, Any]]:
    """(gradients of the first optimizer step, weights at the end, metrics) of each job, from rank 0."""
    _store, port = serve_store("127.0.0.1", 60)
    mp.spawn(_rank, args=(world, port, model, jobs, out), nprocs=world)
    return torch.load(out, weights_only=True)


def job(batches: list[StepBatch], *, budget: int = 10_000, stage: int = 2, **algorithm: Any) -> dict[str, Any]:
    extra = {
        key: algorithm.pop(key)
        for key in ("lr", "dtype", "logprob_chunk", "warmup_steps", "gradient_checkpointing", "deepspeed", "schedule")
        if key in algorithm
    }
    return {
        "batches": batches,
        "learner": LearnerConfig(
            **({"lr": 1e-3, "dtype": "float32", "warmup_steps": 0} | extra), token_budget=budget, zero_stage=stage
        ),
        "algorithm": AlgorithmConfig(**({"k": 2, "group_size": 4} | algorithm)),
    }

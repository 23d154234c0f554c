"""Runs real DeepSpeed ranks in plain processes; what the gradient tests start."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from maxpo.config import AlgorithmConfig, LearnerConfig, LoraConfig
from maxpo.types import StepBatch
from maxpo.weights.rendezvous import join_store, serve_store


class Poison:
    """Spoils loss or gradient of single batches, on the last rank only."""

    def __init__(self, lm: Any, *, active: bool) -> None:
        import learner.update.updater

        self._active, self._kind = active, ""
        self._module: Any = learner.update.updater
        self._loss = self._module.microbatch_loss
        lm.get_input_embeddings().register_forward_hook(self._embedded)

    def use(self, kind: str) -> None:
        """For the next batch. `loss`: that of its first row is infinite, with the gradient as it was; `gradient`: that
        of the first row's embeddings has one infinite entry; nothing: as it is."""
        self._kind = kind if self._active else ""
        if self._kind == "loss":
            self._module.microbatch_loss = self._infinite_loss

    def _infinite_loss(self, *args: Any, **kwargs: Any) -> Any:
        self._module.microbatch_loss = self._loss
        loss, sums = self._loss(*args, **kwargs)
        return loss + math.inf, sums | {"loss": loss.detach() + math.inf}

    def _embedded(self, module: Any, args: Any, output: torch.Tensor) -> None:
        if self._kind == "gradient" and output.requires_grad:
            self._kind = ""
            spot = torch.zeros_like(output)
            spot[0, 0, 0] = math.inf
            output.register_hook(lambda gradient: gradient + spot)


def adapt(lm: Any, lora: LoraConfig) -> None:
    """An adapter that already says something: a B of 0 would leave A without a gradient."""
    from learner.model.lora import add_adapter
    from learner.model.parameters import trained_parameters

    add_adapter(lm, lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained_parameters(lm).items():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def _rank(rank: int, world: int, port: int, model: str, jobs: Sequence[dict[str, Any]], out: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    from learner.deepspeed_engine import TrainEngine
    from learner.model.loading import enable_gradient_checkpointing, load_language_model
    from learner.model.parameters import parameters_by_name, trained_parameters
    from learner.model.policy import Policy
    from learner.model.sequence_parallel import SequenceGroup
    from learner.state.training_state import TrainingState
    from learner.update.reference import base_of
    from learner.update.updater import Updater

    results = []
    for job in jobs:
        learner: LearnerConfig = job["learner"]
        algorithm: AlgorithmConfig = job["algorithm"]
        lm: Any = load_language_model(job.get("model", model), getattr(torch, learner.dtype), trust_remote_code=False)
        if learner.lora.rank:
            adapt(lm, learner.lora)
        calls: list[int] = []
        if learner.gradient_checkpointing:
            enable_gradient_checkpointing(lm)
        lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        shared = learner.sequence_parallel
        sequence = SequenceGroup(shared, learner.step_timeout_s) if shared > 1 else None
        engine = TrainEngine(Policy(lm, sequence), learner, torch.device("cpu"))
        reference = None
        if algorithm.kl_coef and learner.lora.rank and not job.get("reference_model"):
            reference = base_of(engine)
        elif algorithm.kl_coef:
            reference = Policy(load_language_model(model, torch.float32, trust_remote_code=False), sequence)
            reference.requires_grad_(False)
        poison = Poison(lm, active=rank == world - 1)
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

        def capture(lr: float, engine: Any = engine, step: Any = step, gradients: dict[str, Any] = gradients) -> Any:
            if not gradients:
                for name, parameter in trained_parameters(engine.module).items():
                    gradients[name] = engine.full_gradient(parameter).clone()
            return step(lr)

        engine.step = capture
        state = TrainingState(engine, trained_parameters(engine.module))
        if "load" in job:
            updater.optimizer_steps = state.load(Path(job["load"]))["optimizer_steps"]

        def read_weights(engine: Any = engine) -> dict[str, torch.Tensor]:
            weights: dict[str, torch.Tensor] = {}
            for name, parameter in parameters_by_name(engine.module).items():
                with torch.no_grad(), engine.full_parameters([parameter]):
                    weights[name] = parameter.detach().float().clone()
            return weights

        def save(folder: Path, state: Any = state, updater: Any = updater) -> None:
            folder.mkdir(exist_ok=True, parents=True)
            state.copy({"optimizer_steps": updater.optimizer_steps})(folder)
            dist.barrier()

        def save_numbered(i: int, into: str = job.get("save_each", "")) -> None:
            if into:
                save(Path(into, str(i)))
                forward = {f"{name}/forward": w for name, w in read_weights().items()}
                if rank == 0:
                    save_file(forward, Path(into, str(i), "forward.safetensors"))

        save_numbered(0)
        metrics: list[dict[str, float]] = []
        for i, batch in enumerate(job["batches"]):
            poison.use(job.get("poison", {}).get(i, ""))
            try:
                metrics.append(updater.update(batch))
            except FloatingPointError as error:
                if str(error) != job.get("raises", {}).get(i):
                    raise
            save_numbered(i + 1)
        if "save" in job:
            save(Path(job["save"]))
        weights = read_weights()
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
        for key in (
            *("lr", "dtype", "logprob_chunk", "warmup_steps", "gradient_checkpointing", "deepspeed", "schedule"),
            *("grad_clip", "on_nonfinite", "sequence_parallel", "lora"),
        )
        if key in algorithm
    }
    return {
        "batches": batches,
        "learner": LearnerConfig(
            **({"lr": 1e-3, "dtype": "float32", "warmup_steps": 0} | extra), token_budget=budget, zero_stage=stage
        ),
        "algorithm": AlgorithmConfig(**({"k": 2, "group_size": 4} | algorithm)),
    }

"""Runs real DeepSpeed ranks in plain processes; what the gradient tests start."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

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


class RankJob:
    """What one rank does for one job: the real parts of the learner, with eyes and poison in them."""

    def __init__(self, job: dict[str, Any], model: str, rank: int, world: int) -> None:
        from learner.deepspeed_engine import TrainEngine
        from learner.model.loading import enable_gradient_checkpointing, load_language_model
        from learner.model.parameters import trained_parameters
        from learner.model.policy import Policy
        from learner.model.sequence_parallel import SequenceGroup
        from learner.state.training_state import TrainingState

        self.job, self.rank = job, rank
        learner: LearnerConfig = job["learner"]
        lm: Any = load_language_model(job.get("model", model), getattr(torch, learner.dtype), trust_remote_code=False)
        if learner.lora.rank:
            adapt(lm, learner.lora)
        if learner.gradient_checkpointing:
            enable_gradient_checkpointing(lm)
        self.forward_calls = 0
        next(lm.model.layers[0].children()).register_forward_pre_hook(self._count)
        self.sequence = SequenceGroup.of(learner)
        policy = Policy(lm, self.sequence, job.get("layout", "packed"))
        self.engine: Any = TrainEngine(policy, learner, torch.device("cpu"))
        self.poison = Poison(lm, active=rank == world - 1)
        self.updater = self._updater(model)
        self.gradients: dict[str, torch.Tensor] = {}
        self._step, self.engine.step = self.engine.step, self._step_with_gradients
        self.state = TrainingState(self.engine, trained_parameters(self.engine.module))
        if "load" in job:
            self._load()
        if "loss_scale" in job:
            self.engine.loss_scale.restore(job["loss_scale"])

    def run(self) -> tuple[Any, Any, Any]:
        """Gradients of the first optimizer step, weights at the end, metrics."""
        self._save_numbered(0)
        probed = self._probe() if "probe" in self.job else None
        metrics: list[Any] = []
        for i, batch in enumerate(self.job["batches"]):
            self.poison.use(self.job.get("poison", {}).get(i, ""))
            try:
                metrics.append(self.updater.update(batch))
            except FloatingPointError as error:
                if str(error) != self.job.get("raises", {}).get(i):
                    raise
            else:
                assert i not in self.job.get("raises", {})
            self._save_numbered(i + 1)
        self._buffers()
        if "go_back" in self.job:
            metrics = self._go_back()
        if "save" in self.job:
            self._save(Path(self.job["save"]))
        weights = self._weights()
        if probed is not None:
            metrics[0]["probe"] = probed
        if metrics:
            metrics[0]["forward_calls"] = float(self.forward_calls)
        return self.gradients, weights, metrics

    def _updater(self, model: str) -> Any:
        from learner.update.updater import Updater

        return Updater(
            self.engine,
            self._reference(model),
            self.job["learner"],
            self.job["algorithm"],
            rank=self.rank,
            temperature=self.job.get("temperature", 1.0),
            aggregation_constant=20.0,
            total_steps=10,
        )

    def _reference(self, model: str) -> Any:
        """`reference_policy`, and on request a second model for an adapter too."""
        from learner.model.loading import load_language_model
        from learner.model.policy import Policy
        from learner.update.reference import base_of

        if not self.job["algorithm"].kl_coef:
            return None
        if self.job["learner"].lora.rank and not self.job.get("reference_model"):
            return base_of(self.engine)
        frozen = Policy(load_language_model(model, torch.float32, trust_remote_code=False), self.sequence)
        return frozen.requires_grad_(False)

    def _probe(self) -> list[dict[str, Any]]:
        """The figures of all prompts, from all ranks."""
        import learner.update.probe as module

        projected = self.job.get("project")
        limits = {"MEMORY": 0 if projected else module.MEMORY, "PROJECTED": projected or module.PROJECTED}
        with patch.multiple(module, **limits):
            part = module.probe(self.engine, self.job["probe"], self.job["algorithm"], temperature=1.0, chunk=64)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, part)
        return [asdict(figures) | {"dimensions": part.dimensions} for part in parts for figures in part.figures]

    def _count(self, *_: Any) -> None:
        self.forward_calls += 1

    def _step_with_gradients(self, lr: float) -> Any:
        from learner.model.parameters import trained_parameters

        if not self.gradients:
            for name, parameter in trained_parameters(self.engine.module).items():
                self.gradients[name] = self.engine.full_gradient(parameter).clone()
        return self._step(lr)

    def _weights(self) -> dict[str, torch.Tensor]:
        from learner.model.parameters import parameters_by_name

        weights: dict[str, torch.Tensor] = {}
        for name, parameter in parameters_by_name(self.engine.module).items():
            with torch.no_grad(), self.engine.full_parameters([parameter]):
                weights[name] = parameter.detach().float().clone()
        return weights

    def _load(self) -> None:
        extra = self.state.load(Path(self.job["load"]))
        self.updater.optimizer_steps = extra["optimizer_steps"]
        if self.engine.loss_scale is not None and "loss_scale" in extra:
            self.engine.loss_scale.restore(extra["loss_scale"])

    def _go_back(self) -> list[dict[str, float]]:
        """Load the state again after all batches, then train on the batches of `go_back`."""
        self._load()
        return [self.updater.update(batch) for batch in self.job["go_back"]]

    def _buffers(self) -> None:
        """On request change the buffers, and write the policy and what a sync has."""
        from learner.model.parameters import buffers_by_name
        from learner.state.policy_folder import policy_shards, write_policy
        from learner.weight_sync.parameter_source import ParameterSource

        for buffer in buffers_by_name(self.engine.module).values():
            buffer.add_(self.job.get("shift", 0.0))
        if folder := self.job.get("policy"):
            shards = list(policy_shards(self.engine, rank=self.rank))
            sync = dict(ParameterSource(self.engine, torch.bfloat16, 1 << 12, keep=self.rank == 0))
            if self.rank == 0:
                write_policy(self.engine.module.lm, self.job["model"], Path(folder), LoraConfig(), shards)
                save_file(sync, Path(folder, "sync.safetensors"))

    def _save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        extra: Any = {"optimizer_steps": self.updater.optimizer_steps}
        if self.engine.loss_scale is not None:
            extra["loss_scale"] = self.engine.loss_scale.state()
        self.state.copy(extra)(folder)
        dist.barrier()

    def _save_numbered(self, i: int) -> None:
        if into := self.job.get("save_each", ""):
            self._save(Path(into, str(i)))
            forward = {f"{name}/forward": w for name, w in self._weights().items()}
            if self.rank == 0:
                save_file(forward, Path(into, str(i), "forward.safetensors"))


def _rank(rank: int, world: int, port: int, model: str, jobs: Sequence[dict[str, Any]], out: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    results = [RankJob(job, model, rank, world).run() for job in jobs]
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
    learner: dict[str, Any] = {"lr": 1e-3, "dtype": "float32", "warmup_steps": 0} | extra
    settings: dict[str, Any] = {"k": 2, "group_size": 4} | algorithm
    return {
        "batches": batches,
        "learner": LearnerConfig(**learner, token_budget=budget, zero_stage=stage),
        "algorithm": AlgorithmConfig(**settings),
    }

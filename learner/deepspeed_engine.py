"""DeepSpeed behind a small interface: initialise, accumulate gradients, step, read full parameters."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.loss_scale import LossScale
from maxpo.config import LearnerConfig


class ZeroOptimizer(Protocol):
    """DeepSpeed's optimizer: AdamW itself or a wrapper around AdamW, with the attributes of the ZeRO stage."""

    param_groups: list[dict[str, object]]
    averaged_gradients: dict[int, list[Tensor]]
    """Stages 1 and 2: gradients of the step that follows."""
    grad_partitions_flat_buffer: Tensor
    """Stage 3: gradients of the step that follows."""
    fp32_partitioned_groups_flat: list[Tensor]
    """Stage 3: this rank's master weights."""
    _hp_optimizer_states_linked: bool

    def override_loss_scale(self, loss_scale: float) -> None:
        """Multiply the loss by this number, and divide the gradients by it before the step."""
        ...

    def _lazy_init_hp_params_optimizer_state(self) -> None: ...

    def update_lp_params(self) -> None:
        """Stages 1 and 2: copy the master weights into the weights of the forward pass."""
        ...


class DeepSpeedEngine(Protocol):
    """The part of DeepSpeed's engine that the learner uses."""

    module: nn.Module
    optimizer: ZeroOptimizer

    def __call__(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Run the model's forward pass."""
        ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Announce if a step follows the next backward pass."""
        ...

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> Tensor:
        """Add the gradient of the loss."""
        ...

    def step(self) -> None:
        """Apply the gradients, unless they are not finite at ZeRO stage 1 or above."""
        ...

    def zero_grad(self) -> None:
        """Drop the gradients."""
        ...

    def was_step_applied(self) -> bool:
        """Return True if the last step changed the weights."""
        ...

    def get_global_grad_norm(self) -> float:
        """Return the norm of the last step's gradient before clipping."""
        ...


def deepspeed_config(config: LearnerConfig, world_size: int) -> dict[str, object]:
    """Return the DeepSpeed settings of a run. Those that this framework relies on replace those of the user's file."""
    extra = json.loads(Path(config.deepspeed).read_text(encoding="utf-8")) if config.deepspeed else {}
    zero = extra.pop("zero_optimization", {}) | owned_zero(config)
    # Gradients of 16 bits are added up in float32, over microbatches and over ranks. A sum in bfloat16 loses all terms
    # below 1/256 of it. DeepSpeed reduces in the format of the weights unless told otherwise, even with one rank.
    if config.dtype != "float32":
        extra = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}} | extra
    return extra | {"zero_optimization": zero} | owned_settings(config, world_size)


def owned_settings(config: LearnerConfig, world_size: int) -> dict[str, object]:
    """Return the DeepSpeed settings that have settings of their own here, or that this framework relies on."""
    return {
        # Microbatches are cut by tokens, so their number changes from step to step. This framework marks the last one
        # itself and divides by global counts: DeepSpeed must neither count nor divide.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": config.dtype == "bfloat16", "check_grad_overflow": True},
        # A fixed loss scale for DeepSpeed. `TrainEngine` replaces it before each backward pass.
        "fp16": {"enabled": config.dtype == "float16", "loss_scale": 1.0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # optimizer offload works with torch's AdamW, nothing to compile
        "steps_per_print": 1_000_000_000,
    }


def owned_zero(config: LearnerConfig) -> dict[str, object]:
    """Return the settings below `zero_optimization` that a file must not change."""
    # DeepSpeed must look at the gradients before each step, and leave out a step whose gradients are not finite.
    return {"stage": config.zero_stage, "compute_grad_norm": True}


def file_problems(config: LearnerConfig) -> Iterator[str]:
    """Yield the entries of the file `learner.deepspeed` that would have no effect, or have a wrong form."""
    if config.deepspeed is None:
        return
    extra = json.loads(Path(config.deepspeed).read_text(encoding="utf-8"))
    zero = extra.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield f"learner.deepspeed = {config.deepspeed}: zero_optimization must be an object"
        zero = {}
    owned = owned_settings(config, config.ranks) | dict.fromkeys(("optimizer", "scheduler"))
    below = owned_zero(config)
    names = [name for name, value in extra.items() if name in owned and owned[name] != value]
    names += [f"zero_optimization.{name}" for name, value in zero.items() if name in below and below[name] != value]
    if names:
        yield (
            f"learner.deepspeed = {config.deepspeed} sets {', '.join(names)}, which the run sets itself from the "
            "settings of the section learner: leave them out (`maxpo config explain learner`)"
        )


class TrainEngine:
    """A model under DeepSpeed with AdamW."""

    def __init__(self, model: nn.Module, config: LearnerConfig, device: torch.device) -> None:
        """Wrap the model. The default process group must exist already."""
        # DeepSpeed has one number format for all parameters, and leaves that of buffers.
        self._loaded_dtypes: dict[Tensor, torch.dtype] = {p: p.dtype for p in model.parameters()}
        os.environ["DS_ACCELERATOR"] = device.type
        import deepspeed
        import deepspeed.comm

        if device.type == "cpu":
            # Without this, DeepSpeed compiles for over a minute a kernel for inference that training never calls.
            sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
            # DeepSpeed refuses float16 on processors without instructions for it. Torch computes float16 on any.
            accelerator: Any = deepspeed.accelerator.get_accelerator()
            accelerator.is_fp16_supported = lambda: True
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
        settings = deepspeed_config(config, dist.get_world_size())
        if config.zero_stage == 3:
            # Shard on the host, parameter by parameter, so that no device must hold the full model.
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._ds = deepspeed
        self.world_size = dist.get_world_size()
        engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
        self._engine: DeepSpeedEngine = engine
        self._optimizer = optimizer
        self._stage = config.zero_stage
        self.device = device
        self.loss_scale = LossScale() if config.dtype == "float16" else None
        """Factor on the loss. None: the format of the weights needs none."""

    @property
    def deepspeed(self) -> DeepSpeedEngine:
        """DeepSpeed's own engine."""
        return self._engine

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW under DeepSpeed, with one parameter group."""
        return self._optimizer

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return self._stage

    @property
    def module(self) -> nn.Module:
        """The model. Under ZeRO-3 its parameters are empty outside `forward` and `full_parameters`."""
        return self._engine.module

    def loaded_dtype(self, tensor: Tensor) -> torch.dtype:
        """Return the number format that a parameter was loaded in, or that of a buffer."""
        return self._loaded_dtypes.get(tensor, tensor.dtype)

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Run the model's forward pass with DeepSpeed's hooks. See `Policy.forward`."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss` to that of the step. The step applies the sum over ranks and calls.

        Args:
            loss: this rank's share of the global loss.
            last: True for the last microbatch before `step`.
        """
        if self.loss_scale is not None:
            self._engine.optimizer.override_loss_scale(self.loss_scale.value)
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks, but the loss is a share of a global sum.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> float | None:
        """Take an optimizer step with this learning rate.

        Returns:
            The norm of the gradient before clipping. None: the gradient was not finite and was dropped. Nothing else
            has changed then. With a loss scale, the caller decides if the scale was too large, and lowers it.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._stage == 0:
            # Stage 0 keeps full, already reduced gradients and reports no norm in float32.
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return None
            self._engine.step()
            return norm
        self._engine.step()
        if not self._engine.was_step_applied():
            optimizer = self._engine.optimizer
            if self._stage == 3:  # else a parameter that the next step does not use would take its gradient from here
                optimizer.grad_partitions_flat_buffer.zero_()
            elif hasattr(optimizer, "averaged_gradients"):  # absent at stage 1 with bfloat16 added up in float32
                # With an offloaded optimizer DeepSpeed would add the next gradients to these.
                optimizer.averaged_gradients.clear()
            return None
        if self.loss_scale is not None:
            self.loss_scale.taken()
        return float(self._engine.get_global_grad_norm())

    @contextmanager
    def full_parameters(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Gather these parameters on this rank for the time of the block. Collective under ZeRO-3."""
        with self._ds.zero.GatheredParameters(list(parameters), enabled=self._stage == 3):
            yield

    def full_gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the full reduced gradient of one parameter, between `backward` and `step`. For tests and probes."""
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter)
        return gradient if gradient is None or self.loss_scale is None else gradient / self.loss_scale.value

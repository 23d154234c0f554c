"""Master weights, Adam moments and buffers by name: the same files for every ZeRO stage and number of ranks.

DeepSpeed's own checkpoints are pickles, and can be loaded only with the ranks and the stage that wrote them. Its
universal format goes neither from nor to stage 0, nor between stage 3 and the others. Here each parameter has three
float32 tensors in safetensors files, and each persistent buffer has one, in its own number format. Any layout writes
and reads them, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.deepspeed_engine import TrainEngine
from learner.model.parameters import buffers_by_name, full_shape
from learner.state.files import BUFFER, MASTER, META, MOMENTS, Extra, saved_buffers


class TrainingState:
    """Everything that an update changes, read and written by all ranks together."""

    def __init__(self, engine: TrainEngine, parameters: dict[str, nn.Parameter]) -> None:
        """Remember an engine and its trained parameters, by name."""
        self._engine, self._adam, self._stage = engine.deepspeed, engine.optimizer, engine.stage
        self._parameters, self._module = parameters, engine.module
        self._master: dict[str, Tensor] = {}
        if self._stage == 0:  # AdamW's own tensors, which in float32 are the parameters themselves
            own: list[Tensor] = [p for group in self._adam.param_groups for p in group["params"]]
            self._master = dict(zip(parameters, own, strict=True))

    def copy(self, extra: Extra) -> Callable[[Path], None]:
        """Copy the state to the host; each rank takes its share of the parameters, rank 0 its buffers. Collective.

        Args:
            extra: values beside the tensors, which `load` returns.

        Returns:
            A function that writes this rank's share to an existing folder that all ranks see. The function is not
            collective.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        mine: dict[str, Tensor] = {}
        for index, name in enumerate(self._parameters):
            whole = self._whole(name)
            if index % world == rank:
                mine |= {f"{name}/{key}": _on_host(tensor) for key, tensor in whole.items()}
        if rank == 0:
            mine |= {f"{name}/{BUFFER}": _on_host(buffer) for name, buffer in buffers_by_name(self._module).items()}
        meta = {"adam_step": self._adam_step(), "names": list(self._parameters), "extra": extra}

        def write(folder: Path) -> None:
            save_file(mine, folder / f"state-{rank:05d}.safetensors")
            if rank == 0:
                (folder / META).write_text(json.dumps(meta), encoding="utf-8")

        return write

    def load(self, folder: Path) -> Extra:
        """Restore a state that any layout wrote, and return its `extra`. Collective.

        Raises:
            ValueError: the checkpoint is of a model or of an adapter with other parameters or buffers.
        """
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if set(meta["names"]) != set(self._parameters):
            odd = sorted(set(meta["names"]) ^ set(self._parameters))
            raise ValueError(f"{folder}: the checkpoint is of another model: {len(odd)} names differ, first {odd[0]}")
        # Each rank wrote a share of the names, and the number of ranks may have changed, so every rank opens all files.
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        where = {key: file for file in files for key in file.keys()}  # noqa: SIM118
        # All shapes are compared first, so that a wrong checkpoint changes nothing.
        for name, parameter in self._parameters.items():
            there = tuple(where[f"{name}/{MASTER}"].get_slice(f"{name}/{MASTER}").get_shape())
            here = full_shape(parameter)
            if there != here:
                raise ValueError(f"{folder}: the checkpoint is of another model: {name} is {there} there, {here} here")

        buffers = saved_buffers(folder, self._module)

        def read(name: str) -> dict[str, Tensor]:
            return {key: where[f"{name}/{key}"].get_tensor(f"{name}/{key}") for key in (MASTER, *MOMENTS)}

        # An engine that has stepped has moments, which a state from before the first step sets to 0.
        moments = bool(meta["adam_step"] or self._adam_step())
        if moments:
            self._make_moments(meta["adam_step"])
        for name in self._parameters:
            values = read(name)
            self._put(name, values if moments else {MASTER: values[MASTER]})
        self._refresh(read)
        for buffer, saved in buffers:
            buffer.copy_(saved)
        return meta["extra"]

    def _whole(self, name: str) -> dict[str, Tensor]:
        """Return master weight and moments of one parameter, gathered on every rank. Collective.

        The moments are zeros before the first step.
        """
        parameter = self._parameters[name]
        if self._stage == 0:
            master = self._master[name]
            state = self._adam.state.get(master, {})
            return {MASTER: master, **{key: state.get(key, torch.zeros_like(master)) for key in MOMENTS}}
        master = safe_get_full_fp32_param(parameter)
        assert master is not None
        moments = {key: None for key in MOMENTS}
        if self._adam_step():
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {MASTER: master, **{key: torch.zeros_like(master) if m is None else m for key, m in moments.items()}}

    def _adam_step(self) -> float:
        """Return Adam's step count, 0 before the first step."""
        steps = {float(state["step"]) for state in self._adam.state.values() if "step" in state}
        if len(steps) > 1:
            raise RuntimeError(f"parameters differ in their number of Adam steps: {sorted(steps)}")
        return steps.pop() if steps else 0.0

    def _make_moments(self, step: float) -> None:
        """Create the optimizer state of `step` steps with zero moments, because none exists before the first step."""
        group = self._adam.param_groups[0]
        owners = self._engine.optimizer.fp32_partitioned_groups_flat if self._stage == 3 else group["params"]
        for owner in owners:
            device = owner.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
            self._adam.state[owner] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=device),
                **{key: torch.zeros_like(owner).detach() for key in MOMENTS},
            }
        if self._stage in (1, 2):
            # DeepSpeed finds the moments of a parameter by links. It makes the links once, in its first step.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _put(self, name: str, values: dict[str, Tensor]) -> None:
        """Store the full tensors of one parameter in this rank's layout. Collective."""
        parameter = self._parameters[name]
        if self._stage == 0:
            master = self._master[name]
            with torch.no_grad():
                for key, value in values.items():
                    (master if key == MASTER else self._adam.state[master][key]).copy_(value)
            return
        for key, value in values.items():
            if self._stage == 3:
                # Not the setters of full tensors: at stage 3 they fail if the ranks do not divide a parameter.
                share = _share_of(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                if key == MASTER:
                    safe_set_local_fp32_param(parameter, share)
                else:
                    safe_set_local_optimizer_state(parameter, share, key)
            elif key == MASTER:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)

    def _refresh(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Copy the master weights into the weights of forward and backward. Collective."""
        if self._stage == 0:
            for name, parameter in self._parameters.items():
                if parameter is not self._master[name]:
                    parameter.data.copy_(self._master[name].data)
        elif self._stage == 3:
            for name, parameter in self._parameters.items():
                with torch.no_grad(), GatheredParameters([parameter], modifier_rank=0):
                    if dist.get_rank() == 0:
                        parameter.data.copy_(read(name)[MASTER])
        else:
            self._engine.optimizer.update_lp_params()


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _share_of(whole: Tensor, size: int) -> Tensor:
    """Return this rank's part of a flattened tensor, padded with zeros to `size`."""
    first = size * dist.get_rank()
    share = torch.zeros(size, dtype=torch.float32)
    mine = whole.flatten()[first : first + size]
    share[: mine.numel()] = mine
    return share

"""The learner's files in a checkpoint, without DeepSpeed: names, master weights and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from typing_extensions import TypedDict

from learner.model.parameters import buffers_by_name
from maxpo.checkpoints.manifest import read_json
from maxpo.errors import CheckpointError


class Extra(TypedDict):
    """Values beside the tensors of a training state."""

    optimizer_steps: int
    base: NotRequired[str | None]
    """Checksum of the weights under an adapter. None or absent: no adapter, or a checkpoint of an older version."""
    loss_scale: NotRequired[list[float]]
    """State of the loss scale. Absent: the learner needs none."""


class Meta(TypedDict):
    """Content of the JSON file of a training state."""

    adam_step: float
    """Number of steps of Adam."""
    names: list[str]
    """Names of the trained parameters."""
    extra: Extra


META = "meta.json"
"""Name of the JSON file of a training state."""
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
"""Endings of the names of a parameter's tensors in the files: `<name>/master` and so on."""
BUFFER = "buffer"
"""Ending of the name of a buffer in the files."""


def check_state(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check a training state by its headers, before anything loads it.

    Args:
        folder: the learner's files in a checkpoint.
        expected: shapes of the trained parameters, by name.

    Raises:
        CheckpointError: a file cannot be read, or the state has not the expected tensors, each in float32.
    """
    names = set(read_json(Meta, folder / META)["names"])
    if odd := sorted(names ^ expected.keys()):
        raise CheckpointError(f"{folder}: of another model: {len(odd)} names of parameters differ, first {odd[0]}")
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    found[key] = part.get_dtype(), tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error})") from error
    for name, shape in expected.items():
        for kind in (MASTER, *MOMENTS):
            there = found.get(f"{name}/{kind}")
            if there != ("F32", shape):
                has = f"is {there[0]} {list(there[1])}" if there else "is missing"
                raise CheckpointError(f"{folder}: {name}/{kind} {has}, and this model needs F32 {list(shape)}")


def read_masters(folder: Path) -> dict[str, Tensor]:
    """Return the master weights of a training state by parameter name, on the CPU."""
    return _read(folder, MASTER)


def saved_buffers(folder: Path, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return each persistent buffer of a model with its value in a training state.

    The list is empty if the state has no buffers, as in a checkpoint of an older version: the model keeps its own.

    Raises:
        ValueError: the state is of a model with other buffers.
    """
    saved, own = _read(folder, BUFFER), buffers_by_name(model)
    if not saved:
        return []
    if odd := sorted(saved.keys() ^ own.keys()):
        raise ValueError(
            f"{folder}: the checkpoint is of another model: {len(odd)} names of buffers differ, first {odd[0]}"
        )
    for name, buffer in own.items():
        there, here = tuple(saved[name].shape), tuple(buffer.shape)
        if there != here:
            raise ValueError(f"{folder}: the checkpoint is of another model: {name} is {there} there, {here} here")
    return [(buffer, saved[name]) for name, buffer in own.items()]


def _read(folder: Path, kind: str) -> dict[str, Tensor]:
    """Return the tensors whose names end in `/kind`, by the name before."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            keys = [key for key in tensors.keys() if key.endswith(f"/{kind}")]  # noqa: SIM118
            found |= {key.removesuffix(f"/{kind}"): tensors.get_tensor(key) for key in keys}
    return found

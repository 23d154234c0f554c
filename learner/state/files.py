"""The learner's files in a checkpoint, without DeepSpeed: names and master weights."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from safetensors import safe_open
from torch import Tensor


class Extra(TypedDict):
    """Values beside the tensors of a training state."""

    optimizer_steps: int
    base: NotRequired[str | None]
    """Checksum of the weights under an adapter. None or absent: no adapter, or a checkpoint of an older version."""


META = "meta.json"
"""Name of the JSON file of a training state."""
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
"""Endings of the names of a parameter's tensors in the files: `<name>/master` and so on."""


def read_masters(folder: Path) -> dict[str, Tensor]:
    """Return the master weights of a training state by parameter name, on the CPU."""
    masters: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            keys = [key for key in tensors.keys() if key.endswith(f"/{MASTER}")]  # noqa: SIM118
            masters |= {key.removesuffix(f"/{MASTER}"): tensors.get_tensor(key) for key in keys}
    return masters

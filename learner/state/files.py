"""The learner's files in a checkpoint, without DeepSpeed: names, checksums, master weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from maxpo.errors import InputError
from maxpo.seeds import derive_seed
from maxpo.weights.checksum import tensor_digest

META = "meta.json"
"""The file of a training state that is no tensors."""
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
"""A parameter's tensors in the files are called `<name>/master` and so on."""


def read_masters(folder: Path) -> dict[str, Tensor]:
    """The master weights of a training state by parameter name, on the CPU."""
    masters: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            keys = [key for key in tensors.keys() if key.endswith(f"/{MASTER}")]  # noqa: SIM118
            masters |= {key.removesuffix(f"/{MASTER}"): tensors.get_tensor(key) for key in keys}
    return masters


def base_digest(lm: Any) -> str:
    """Checksum of a language model without an adapter, in the number format that it was loaded in."""
    digests = [(name, int(tensor_digest(parameter))) for name, parameter in lm.named_parameters()]
    return f"{lm.dtype}:{derive_seed(*digests):x}"


def check_base(recorded: str | None, now: str, model_path: str) -> None:
    """Compare the base that an adapter was trained on, as its checkpoint says, with the one that is there now.

    Raises:
        InputError: it is another one. What was loaded in another number format cannot be compared, and passes.
    """
    if recorded is not None and recorded != now and recorded.partition(":")[0] == now.partition(":")[0]:
        raise InputError(
            f"model.path = {model_path}: its weights are not those that the adapter of the checkpoint was trained on; "
            "put them back, or name their folder"
        )

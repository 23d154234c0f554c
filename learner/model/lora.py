"""LoRA: a peft adapter in the linear layers, which alone is trained, and the checksum of its base."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.model.parameters import ADAPTER, buffers_by_name, trained_parameters
from maxpo.config import LoraConfig
from maxpo.errors import InputError
from maxpo.seeds import derive_seed
from maxpo.weights.checksum import tensor_digest

if TYPE_CHECKING:  # these take seconds to import
    from peft import LoraConfig as PeftLoraConfig
    from transformers import PreTrainedModel

ADAPTER_FOLDER = "adapter"
"""Name of the adapter's folder in the folder of a policy."""


def require_peft() -> None:
    """Raise unless peft and its requirements are installed.

    Raises:
        InputError: a package is missing; says how to install the package.
    """
    if missing := [name for name in ("peft", "accelerate") if find_spec(name) is None]:
        raise InputError(f'learner.lora.rank needs {" and ".join(missing)}: pip install "maxpo[lora]"')


def linear_layers(lm: PreTrainedModel) -> dict[str, list[nn.Linear]]:
    """Return the linear layers of a language model by the last part of their names.

    The head is left out, and layers that share a weight: each would have an adapter of its own, and the weight is one.
    """
    head = lm.get_output_embeddings()
    linear = {n: m for n, m in lm.base_model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    uses = Counter(module.weight for module in linear.values())
    found: dict[str, list[nn.Linear]] = {}
    for name, module in linear.items():
        if uses[module.weight] == 1:
            found.setdefault(name.rpartition(".")[2], []).append(module)
    return found


def target_layers(lm: PreTrainedModel, lora: LoraConfig) -> dict[str, list[nn.Linear]]:
    """Return the layers that get an adapter, by the last part of their names.

    Raises:
        InputError: the model has no such layers; names the layers that exist.
    """
    found = linear_layers(lm)
    wanted = lora.targets or list(found)
    missing = [name for name in wanted if name not in found]
    if missing or not wanted:
        which = ", ".join(missing) or "at all"
        there = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"learner.lora.targets: the model has no linear layer {which}; besides the head there are: {there}"
        )
    return {name: found[name] for name in wanted}


def adapter_parameters(lm: PreTrainedModel, lora: LoraConfig) -> int:
    """Return the number of parameters of an adapter."""
    layers = [layer for same in target_layers(lm, lora).values() for layer in same]
    return lora.rank * sum(layer.in_features + layer.out_features for layer in layers)


def coverage(lm: PreTrainedModel, lora: LoraConfig) -> str:
    """Return a sentence: the share of the weights in matrices that get an adapter, and the matrices that get none.

    Embeddings and head do not count. The model may be on the meta device.
    """
    layers = [layer for same in target_layers(lm, lora).values() for layer in same]
    adapted = {layer.weight for layer in layers}
    outside = {
        module.weight for module in (lm.get_input_embeddings(), lm.get_output_embeddings()) if module is not None
    }
    matrices = {name: p for name, p in lm.named_parameters() if p.ndim > 1 and p not in outside}
    without = {name: p for name, p in matrices.items() if p not in adapted}
    share = 1 - sum(p.numel() for p in without.values()) / sum(p.numel() for p in matrices.values())
    said = f"adapter of rank {lora.rank} on {100 * share:.0f} % of the weights in matrices"
    if not without:
        return said
    kinds: dict[str, int] = {}
    for name, parameter in without.items():
        kind = (
            ".".join(part for part in name.split(".") if not part.isdigit())
            .removeprefix("model.")
            .removesuffix(".weight")
        )
        kinds[kind] = kinds.get(kind, 0) + parameter.numel()
    largest = sorted(kinds, key=lambda kind: -kinds[kind])
    why = "; peft adapts linear layers, and fused experts, convolutions and weights of several layers are none"
    chosen = "; learner.lora.targets names the layers" if lora.targets else why
    return f"{said}, none on {', '.join(largest[:4])}{', ...' if len(largest) > 4 else ''}{chosen}"


def add_adapter(lm: PreTrainedModel, lora: LoraConfig, *, seed: int) -> None:
    """Put an adapter into the model, in place, and freeze the rest. B is 0, so the policy equals the base at first.

    Args:
        lm: the language model, not sharded.
        lora: rank, alpha, targets.
        seed: seed of A, the same on every rank.

    Raises:
        InputError: peft is not installed, or the model has no such layers.
    """
    require_peft()
    from peft import inject_adapter_in_model

    dtype = lm.dtype
    layers = {layer for same in target_layers(lm, lora).values() for layer in same}
    # Inside a plain module, because in a model of transformers peft translates names of linear layers. For some
    # families it makes fused experts of them, whose adapter cannot be merged.
    holder = nn.ModuleDict({"lm": lm})
    settings = peft_config(lora, [name for name, module in holder.named_modules() if module in layers])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, holder, ADAPTER)
    for parameter in trained_parameters(lm).values():
        parameter.data = parameter.data.to(dtype)


def peft_config(lora: LoraConfig, targets: list[str], model_path: str | None = None) -> PeftLoraConfig:
    """Return the adapter's settings in peft's form."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.rank,
        # peft says int, and takes and writes any number.
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=model_path,
    )


def write_adapter(tensors: dict[str, Tensor], lora: LoraConfig, model_path: str, folder: Path) -> None:
    """Write an adapter to the new folder as `peft.PeftModel.from_pretrained` loads it.

    Args:
        tensors: by the names of `trained_parameters`.
        lora: rank, alpha, targets.
        model_path: the folder of its base.
        folder: the folder to write.
    """
    folder.mkdir()
    targets = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in tensors})
    peft_config(lora, targets, model_path).save_pretrained(str(folder))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def base_digest(lm: PreTrainedModel) -> str:
    """Return the checksums of a language model without an adapter, as `dtype:parameters` or `dtype:parameters:buffers`.

    Models without persistent buffers have no third part, nor has the checkpoint of an older version.
    """
    parts = [dict(lm.named_parameters()), buffers_by_name(lm)]
    digests = [[(name, int(tensor_digest(t))) for name, t in part.items()] for part in parts if part]
    return ":".join([str(lm.dtype), *(f"{derive_seed(*part):x}" for part in digests)])


def check_base(recorded: str | None, now: str, model_path: str) -> None:
    """Compare the checksum of the base in an adapter's checkpoint with that of the loaded base.

    Checksums of different number formats cannot be compared, and pass. So does a checksum that one of the two lacks.

    Raises:
        InputError: the base is another one.
    """
    if recorded is None:
        return
    (dtype, *before), (dtype_now, *found) = recorded.split(":"), now.split(":")
    if dtype == dtype_now and any(a != b for a, b in zip(before, found, strict=False)):
        raise InputError(
            f"model.path = {model_path}: its weights are not those that the adapter of the checkpoint was trained on; "
            "put them back, or name their folder"
        )

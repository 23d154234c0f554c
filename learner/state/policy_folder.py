"""The policy as a Hugging Face folder, which transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from learner.deepspeed_engine import TrainEngine
from learner.model.lora import ADAPTER_FOLDER, write_adapter
from learner.model.original_names import OriginalNames, cut_pieces
from learner.model.parameters import Weight, full_shape, policy_weights, trained_parameters
from maxpo.config import LoraConfig
from maxpo.errors import RunError
from maxpo.files import replacing
from maxpo.weights.buckets import TensorMeta

SHARD_BYTES = 4 << 30
SINGLE = "model.safetensors"
"""Name of the file of a model that fits into one file."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Endings of files with weights or lists of weights. All other files of the model folder are copied."""


Shard = tuple[str, dict[str, Tensor]]
"""Name of a file and its tensors. There are no tensors on ranks that do not write."""


def policy_shards(engine: TrainEngine, *, rank: int, shard_bytes: int = SHARD_BYTES) -> Iterator[Shard]:
    """Yield the policy's weights in the number formats of the loaded model, copied to the host of rank 0.

    Collective: every rank must iterate to the end.
    """
    weights = policy_weights(engine.module)
    names = OriginalNames(engine.module)
    metas = [TensorMeta(name, engine.loaded_dtype(w.base), full_shape(w.base)) for name, w in weights.items()]
    shards = list(cut_pieces(names.pieces(metas), shard_bytes))
    ready: dict[str, Tensor] = {}
    for number, (shard, pieces) in enumerate(shards, start=1):
        tensors: dict[str, Tensor] = {}
        inside = {name: weights[name] for piece in pieces for name in piece.sources}
        with torch.no_grad(), engine.full_parameters([p for w in inside.values() for p in w.parameters]):
            if rank == 0:
                for piece in pieces:
                    copies = {n: _on_host(inside[n], engine.loaded_dtype(inside[n].base)) for n in piece.sources}
                    ready |= names.convert(copies)
                tensors = {meta.name: ready.pop(meta.name) for meta in shard}
        yield f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE, tensors


def adapter_of(engine: TrainEngine) -> dict[str, Tensor]:
    """Return the tensors of the adapter, on the host of every rank. Collective."""
    parameters = trained_parameters(engine.module)
    with torch.no_grad(), engine.full_parameters(list(parameters.values())):
        return {name: _on_host(Weight(parameter)) for name, parameter in parameters.items()}


def write_policy(
    lm: PreTrainedModel,
    model_path: str,
    target: Path,
    lora: LoraConfig,
    shards: Iterable[Shard] | None = None,
    adapter: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, configuration and tokenizer to the folder `target`, which appears when complete.

    An adapter is merged into the weights, and also written in peft's form to a folder inside.

    Args:
        lm: the language model, whose configuration is written.
        model_path: folder of the original model; everything but weights is copied from there.
        target: the folder to write.
        lora: the adapter's settings; rank 0 means no adapter.
        shards: the weights, written one after the other. None: those of `lm`, which is not sharded.
        adapter: tensors of the adapter. None: those of `lm`.
    """
    if shards is None:
        whole = {name: _on_host(weight) for name, weight in policy_weights(lm).items()}
        shards = [(SINGLE, OriginalNames(lm).convert(whole))]
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        partial.mkdir()
        _write_weights(partial, shards)
        for file in sorted(Path(model_path).iterdir()):
            if file.is_file() and not file.name.endswith(WEIGHT_FILES):
                shutil.copy(file, partial)
        # The weights may have another dtype than those that the run started from.
        lm.config.save_pretrained(partial)
        if lora.rank:
            if adapter is None:
                adapter = {name: _on_host(Weight(parameter)) for name, parameter in trained_parameters(lm).items()}
            write_adapter(adapter, lora, model_path, partial / ADAPTER_FOLDER)


def _write_weights(folder: Path, shards: Iterable[Shard]) -> None:
    """Write each shard as a file, and an index if there are several.

    Raises:
        RunError: a weight is not finite.
    """
    weight_map: dict[str, str] = {}
    size = 0
    for file, tensors in shards:
        if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise RunError(
                f"the policy is not exported: {len(wrong)} of its tensors have values that are not finite in the "
                f"number format of the files, first {wrong[0]}"
            )
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if set(weight_map.values()) != {SINGLE}:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _on_host(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    return weight.copy(dtype or weight.base.dtype, torch.device("cpu")).contiguous()

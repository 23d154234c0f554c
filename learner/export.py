"""The policy as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from learner.engine import TrainEngine
from learner.model import parameters_by_name
from maxpo.transport import TensorMeta, cut_into_buckets

SHARD_BYTES = 4 << 30
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Endings of files that hold weights or list them; everything else of the model folder is copied as it is."""


def export_policy(
    engine: TrainEngine, model_path: str, target: Path, *, rank: int, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write weights, configuration and tokenizer to the new folder `target`. Collective; rank 0 writes.

    Parameters are gathered and written shard by shard, so no rank ever holds more than one shard. The folder
    appears under its name only when it is complete.
    """
    parameters = parameters_by_name(engine.module)
    metas = [TensorMeta(name, p.dtype, engine.full_shape(p)) for name, p in parameters.items()]
    shards = list(cut_into_buckets(metas, shard_bytes))
    partial = target.with_name(f".{target.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map |= {meta.name: file for meta in shard}
        with torch.no_grad(), engine.full_parameters([parameters[meta.name] for meta in shard]):
            if rank == 0:
                tensors = {meta.name: parameters[meta.name].detach().cpu().contiguous() for meta in shard}
                save_file(tensors, partial / file, metadata={"format": "pt"})
    if rank:
        return
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(meta.nbytes for meta in metas)}, "weight_map": weight_map}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    _finish(engine.module.lm, model_path, partial, target)


def write_policy(lm: Any, model_path: str, target: Path) -> None:
    """The same of a whole language model in this process."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in lm.named_parameters()}
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    _finish(lm, model_path, partial, target)


def _finish(lm: Any, model_path: str, partial: Path, target: Path) -> None:
    """Everything of a model folder but the weights, and its final name."""
    for file in sorted(Path(model_path).iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHT_FILES):
            shutil.copy(file, partial)
    # The weights may have another dtype than those the run started from.
    lm.config.save_pretrained(partial)
    partial.rename(target)

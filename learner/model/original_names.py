"""Weights under the names of the model's files.

transformers may hold weights in other pieces than the files do, for example all experts of a layer in one tensor.
Engines and other programs know the names of the files, which `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from maxpo.weights.buckets import TensorMeta, cut_into_buckets


@dataclass(frozen=True, slots=True)
class Piece:
    """Tensors of a model that are converted together, and the tensors of the files that come out."""

    sources: tuple[str, ...]
    outputs: tuple[TensorMeta, ...]


class OriginalNames:
    """The way back from the tensors of a loaded model to those of its files."""

    def __init__(self, model: nn.Module) -> None:
        """Look up what was converted when the language model, or that of the policy, was loaded."""
        self._lm: Any = getattr(model, "lm", model)
        loaded: list[Any] = getattr(self._lm, "_weight_conversions", None) or []
        reverse = [conversion.reverse_transform() for conversion in reversed(loaded)]
        self._renamings = [entry for entry in reverse if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in reverse if isinstance(entry, WeightConverter)]

    @property
    def same(self) -> bool:
        """True if the files have the names of the loaded model."""
        return not self._renamings and not self._converters

    def pieces(self, metas: Sequence[TensorMeta]) -> list[Piece]:
        """Return the smallest pieces that these tensors of the model can be converted in, in their order."""
        if self.same:
            return [Piece((meta.name,), (meta,)) for meta in metas]
        together: dict[str, list[TensorMeta]] = {}
        for meta in metas:
            key, _ = rename_source_key(meta.name, self._renamings, self._converters, reverse=True)
            together.setdefault(key, []).append(meta)
        pieces: list[Piece] = []
        for group in together.values():
            empty = {meta.name: torch.empty(meta.shape, dtype=meta.dtype, device="meta") for meta in group}
            outputs = [TensorMeta(name, t.dtype, tuple(t.shape)) for name, t in self.convert(empty).items()]
            pieces.append(Piece(tuple(empty), tuple(outputs)))
        return pieces

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a piece under the names of the files."""
        if self.same:
            return dict(tensors)
        converted: dict[str, Any] = revert_weight_conversion(self._lm, dict(tensors))
        return {name: tensor.contiguous() for name, tensor in converted.items()}


def cut_pieces(pieces: Sequence[Piece], size: int) -> Iterator[tuple[list[TensorMeta], list[Piece]]]:
    """Yield buckets of the outputs of at most `size` bytes, with the pieces to convert for each.

    A piece whose outputs begin in one bucket and end in another belongs to the first.
    """
    waiting = list(reversed(pieces))
    converted: set[str] = set()
    for bucket in cut_into_buckets([meta for piece in pieces for meta in piece.outputs], size):
        now: list[Piece] = []
        while not {meta.name for meta in bucket} <= converted:
            now.append(waiting.pop())
            converted |= {meta.name for meta in now[-1].outputs}
        yield bucket, now

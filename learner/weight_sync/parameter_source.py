"""Weights of the policy on the wire: gathered bucket by bucket, each tensor with a checksum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from learner.deepspeed_engine import TrainEngine
from learner.model.original_names import OriginalNames, cut_pieces
from learner.model.parameters import Weight, full_shape, policy_weights
from maxpo.weights.buckets import TensorMeta, unpack_bucket
from maxpo.weights.checksum import bytes_digest, tensor_digest


class UpdateInfo(TypedDict):
    """Tensors of a sync, in the form of vLLM's weight-transfer API."""

    names: list[str]
    dtype_names: list[str]
    """Without the prefix `torch.`."""
    shapes: list[list[int]]


class ParameterSource:
    """Weights of a training engine in buckets, under the names of the model's files, with an adapter merged into them.

    Persistent buffers keep their number format, because an engine may hold them in more digits than its weights. The
    engines know the name of every buffer: they have loaded the files of the model, and a model whose files lack a
    buffer is refused.
    """

    def __init__(self, engine: TrainEngine, dtype: torch.dtype, bucket_bytes: int, *, keep: bool) -> None:
        """Look at the weights; nothing is copied yet.

        Args:
            engine: the engine of the policy.
            dtype: number format of parameters on the wire.
            bucket_bytes: most bytes of a bucket, unless one tensor alone is larger.
            keep: True if this rank sends, or hands its copy to an engine on its GPU. The other ranks only take part
                in the gathering.
        """
        self._engine, self._dtype = engine, dtype
        self._bucket_bytes = bucket_bytes
        self._keep = keep
        self.digests: dict[str, Tensor | int] = {}
        """Checksum of each tensor that was sent in this pass."""
        self._names = OriginalNames(engine.module)
        self.begin()

    def begin(self) -> None:
        """Begin a new pass over the weights."""
        # Looked up each time, because a module may replace a buffer.
        self._weights = policy_weights(self._engine.module)
        metas = [TensorMeta(name, self._format(w.base), full_shape(w.base)) for name, w in self._weights.items()]
        # Wide numbers first: vLLM reads packed tensors in place, where each must start at a multiple of its width.
        self._pieces = self._names.pieces(sorted(metas, key=lambda meta: -meta.dtype.itemsize))
        self.metas = [meta for piece in self._pieces for meta in piece.outputs]
        self._pass = self._gather()

    def buckets(self) -> Iterator[list[tuple[TensorMeta, Tensor]]]:
        """Return the rest of the pass: whole tensors, one bucket at a time. Collective.

        The tensors may be the weights themselves, in the number format of the training. They must be copied before
        the next bucket is asked for, and their checksums put into `digests`. The buckets are empty on ranks that do
        not send.
        """
        return self._pass

    def finish(self) -> None:
        """Go through the rest of the pass after sending has failed, because the other ranks gather to the end."""
        for _ in self._pass:
            pass

    def _format(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if isinstance(tensor, nn.Parameter) else tensor.dtype

    def _gather(self) -> Iterator[list[tuple[TensorMeta, Tensor]]]:
        self.digests = {}
        _finish_cuda_work()
        ready: dict[str, Tensor] = {}
        for bucket, pieces in cut_pieces(self._pieces, self._bucket_bytes):
            weights = {name: self._weights[name] for piece in pieces for name in piece.sources}
            with self._engine.full_parameters([p for w in weights.values() for p in w.parameters]):
                if self._keep:
                    for piece in pieces:
                        ready |= self._converted({name: weights[name] for name in piece.sources})
                yield [(meta, ready.pop(meta.name)) for meta in bucket] if self._keep else []

    def _converted(self, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
        """Return the tensors of a piece under the names of the files."""
        with torch.no_grad():
            if self._names.same:
                return {name: weight.value() for name, weight in weights.items()}
            # Copies: some of the tensors may belong to the next bucket, where the weights are no longer gathered.
            return self._names.convert({n: weight.copy(self._format(weight.base)) for n, weight in weights.items()})

    def pack(self, bucket: Sequence[tuple[TensorMeta, Tensor]], packed: Tensor) -> None:
        """Write a bucket into the bytes that travel, and take the checksums there."""
        for (_, tensor), (name, place) in zip(bucket, unpack_bucket(packed, [meta for meta, _ in bucket]), strict=True):
            place.copy_(tensor)
            self.digests[name] = bytes_digest(place)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield a copy of each tensor in the format of the wire, as vLLM's trainer engines expect."""
        for bucket in self.buckets():
            copies = {meta.name: tensor.to(meta.dtype, copy=True) for meta, tensor in bucket}
            self.digests |= {name: tensor_digest(tensor) for name, tensor in copies.items()}
            _finish_cuda_work()
            for name, tensor in copies.items():
                if tensor.is_cuda:
                    # vLLM packs on streams of its own. The memory must not be used again before they are done.
                    tensor.record_stream(torch.cuda.current_stream())
                yield name, tensor

    def metadata(self) -> list[TensorMeta]:
        """Return name, dtype and shape of every tensor that iteration yields."""
        return self.metas

    def update_info(self) -> UpdateInfo:
        """Return the description of a sync that receivers get."""
        return {
            "names": [meta.name for meta in self.metas],
            "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in self.metas],
            "shapes": [list(meta.shape) for meta in self.metas],
        }


def _finish_cuda_work() -> None:
    """Wait for the GPU.

    The optimizer must be done before its weights are copied, and the copies before another stream reads them.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

"""The weights of the policy as they go on the wire: gathered bucket by bucket, each with a checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from learner.deepspeed_engine import TrainEngine
from learner.model.parameters import full_shape, policy_weights
from maxpo.weights.buckets import TensorMeta, cut_into_buckets
from maxpo.weights.checksum import tensor_digest


class ParameterSource:
    """The weights of a training engine on the wire, in buckets, under Hugging Face names, an adapter merged."""

    def __init__(self, engine: TrainEngine, dtype: torch.dtype, bucket_bytes: int, *, keep: bool) -> None:
        """`keep`: this rank sends, or hands its copy to an engine on its GPU; the others only join the gathering."""
        self._engine = engine
        self._weights = policy_weights(engine.module)
        self.metas = [TensorMeta(name, dtype, full_shape(w.base)) for name, w in self._weights.items()]
        self._bucket_bytes = bucket_bytes
        self._keep = keep
        self.digests: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Get ready for one more pass over the parameters."""
        self._pass = self._gather()

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Whole tensors, one bucket at a time; empty buckets on ranks that do not send. Collective."""
        return self._pass

    def finish(self) -> None:
        """Go through the rest of the pass, where sending was given up: the other ranks gather to the end."""
        for _ in self._pass:
            pass

    def _gather(self) -> Iterator[list[tuple[str, Tensor]]]:
        self.digests = {}
        _finish_cuda_work()
        for bucket in cut_into_buckets(self.metas, self._bucket_bytes):
            weights = [self._weights[meta.name] for meta in bucket]
            tensors: list[tuple[str, Tensor]] = []
            with torch.no_grad(), self._engine.full_parameters([p for w in weights for p in w.parameters]):
                if self._keep:
                    for meta, weight in zip(bucket, weights, strict=True):
                        # A copy: the gathered tensor is gone after the bucket, and training may go on.
                        tensor = weight.copy(meta.dtype)
                        self.digests[meta.name] = tensor_digest(tensor)
                        tensors.append((meta.name, tensor))
            _finish_cuda_work()
            yield tensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """The same, tensor by tensor (the form of vLLM's trainer engines)."""
        for bucket in self.buckets():
            for name, tensor in bucket:
                if tensor.is_cuda:
                    # vLLM packs on streams of its own: the memory must not be used again before they are done.
                    tensor.record_stream(torch.cuda.current_stream())
                yield name, tensor

    def metadata(self) -> list[TensorMeta]:
        """Name, dtype and shape of everything that iteration yields."""
        return self.metas

    def update_info(self) -> dict[str, Any]:
        """The description of a sync that receivers get."""
        return {
            "names": [meta.name for meta in self.metas],
            "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in self.metas],
            "shapes": [list(meta.shape) for meta in self.metas],
        }


def _finish_cuda_work() -> None:
    """Wait for the GPU: the optimizer's work before copies are made, the copies before another stream reads them."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

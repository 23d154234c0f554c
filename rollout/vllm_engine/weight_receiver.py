"""The engine's end of the weight sync. Runs inside vLLM's worker processes.

vLLM's weight-transfer API does the layerwise reload, the packing for the CPU kernels and the sharding. The receivers
here add a gloo backend for machines without CUDA, a checksum of every received tensor, and cures for what a reload
leaves wrong in vLLM 0.32 (`_prepare_reload`, `_prepare_copies`, `_keep_new_parameters`, `_refuse_gaps`,
`_finish_reload`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from maxpo.weights.buckets import TensorMeta, cut_into_buckets, packed_size, unpack_bucket
from maxpo.weights.buffers import Buffers
from maxpo.weights.checksum import bytes_digest, tensor_digest
from maxpo.weights.rendezvous import gloo_group, join_store
from maxpo.weights.shared_memory import SharedView

# vLLM warns of each layer of which nothing was sent, at each sync. `_refuse_gaps` knows which of them are wrong.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

BUFFERS = 3
"""Buffers that are kept for the next buckets: one arrives, one is loaded, and layers span two of them."""


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Address of the learner, and the group. `rank_offset` is the group rank of this engine's first worker."""

    host: str
    port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    timeout_s: float
    shared: str | None
    """Path of the memory that holds the buckets. None: they come over TCP."""


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The tensors of one sync, in the order of their arrival."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class _Checked:
    """Mixin of a receiver that computes a checksum of every tensor on its way to the model."""

    digests: dict[str, torch.Tensor | int]
    digest: Callable[[torch.Tensor], torch.Tensor | int] = staticmethod(tensor_digest)

    def start_weight_update(self) -> None:
        self.digests = {}
        super().start_weight_update()  # pyright: ignore
        _prepare_reload(self.model)  # pyright: ignore

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        model = self.model  # pyright: ignore
        load = model.load_weights

        def checked(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            bucket = list(weights)
            self.digests |= {name: self.digest(tensor) for name, tensor in bucket}
            loaded: set[str] = load(bucket) or set()
            if _prepare_copies(model, loaded):
                with _loaders_off(model):
                    load(bucket)

        model.load_weights = checked
        try:
            super().receive_weights(update_info)  # pyright: ignore
        finally:
            del model.load_weights

    def finish_weight_update(self) -> None:
        _keep_new_parameters(self.model)  # pyright: ignore
        _refuse_gaps(self.model)  # pyright: ignore
        super().finish_weight_update()  # pyright: ignore
        _finish_reload(self.model)  # pyright: ignore


def _prepare_reload(model: torch.nn.Module) -> None:
    """Keep what the layerwise reload would lose. Call after `initialize_layerwise_reload`.

    - A persistent buffer that is not sent would come out of the reload as uninitialised memory: the layer is rebuilt
      with empty tensors, and all of them are copied back. So the rebuilt layer starts from the buffer's value.
    - On CPU the kernel of fused experts reads packed weights. `UnquantizedFusedMoEMethod._setup_kernel` packs them only
      when it makes a kernel, and puts plain weights in the place of packed ones in a reload. So a new kernel is made.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.platforms import current_platform

    for module in model.modules():
        kept = (get_layerwise_info(module).kernel_tensors or ({}, {}))[1]
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name in kept and kept[name].shape == buffer.shape:
                value = kept[name].clone()
                vars(value).update(vars(buffer))  # the loader that the reload has put there
                module._buffers[name] = value
        method: Any = getattr(module, "quant_method", None)
        if current_platform.is_cpu() and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _prepare_copies(model: torch.nn.Module, loaded: set[str]) -> bool:
    """Give memory to parameters that the model has loaded without the loaders of the layerwise reload.

    The `load_weights` of some models, such as gpt_oss, copies into parameters itself. In a reload they have no memory,
    so nothing is copied.

    Args:
        model: the engine's model, in a layerwise reload.
        loaded: the parameters that the model says it has loaded.

    Returns:
        True if there are such parameters. They must be loaded again then.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor

    found = False
    for path, module in model.named_modules():
        info = get_layerwise_info(module)
        for name in _unreached(module):
            if f"{path}.{name}".removeprefix(".") in loaded:
                with info.restore_device:
                    setattr(module, name, materialize_meta_tensor(getattr(module, name)))
                info.load_numel = max(info.load_numel, 1)  # the layer is completed when the reload ends
                found = True
    return found


@contextmanager
def _loaders_off(model: torch.nn.Module) -> Iterator[None]:
    """Let the loaders of the layerwise reload do nothing."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    infos = [get_layerwise_info(module) for module in model.modules()]
    totals = [info.load_numel_total for info in infos]
    for info in infos:
        info.load_numel_total = None
    try:
        yield
    finally:
        for info, total in zip(infos, totals, strict=True):
            info.load_numel_total = total


def _unreached(module: torch.nn.Module) -> list[str]:
    """Return the parameters of a layer that nothing has been loaded for in this reload."""
    from vllm.model_executor.layers.attention import is_deferred_attention_layer
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    if is_deferred_attention_layer(module):
        return []  # it has only scales, and vLLM has values for those that a model lacks
    reached = {name for name, _ in get_layerwise_info(module).loaded_weights}
    return [n for n, p in module.named_parameters(recurse=False) if p.is_meta and n not in reached]


def _keep_new_parameters(model: torch.nn.Module) -> None:
    """Keep parameters that the model has put in place of those of the reload. Call before `_refuse_gaps`.

    vLLM's models of transformers make the bias of a head anew, with a plain loader, in each load. The reload counts
    nothing for that layer, and puts its former parameters back.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for module in model.modules():
        info = get_layerwise_info(module)
        former = (info.kernel_tensors or ({}, {}))[0]
        for name, parameter in module.named_parameters(recurse=False):
            old = former.get(name)
            if old is None or old is parameter or parameter.is_meta or info.load_numel > 0:
                continue
            if old.shape == parameter.shape:
                old.data.copy_(parameter.data)


def _refuse_gaps(model: torch.nn.Module) -> None:
    """Refuse a sync that left out a parameter of a layer. Call before `finalize_layerwise_reload`.

    vLLM accepts such a layer, and the parameter would be uninitialised memory. A layer of which nothing was sent keeps
    its weights, for example a head that shares the embedding's.

    Raises:
        RuntimeError: parameters of a layer are missing. Names them.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    missing: list[str] = []
    for path, module in model.named_modules():
        if get_layerwise_info(module).load_numel > 0:
            missing += [f"{path}.{name}".removeprefix(".") for name in _unreached(module)]
    if missing:
        raise RuntimeError(f"the sync left out weights that the engine has: {', '.join(missing)}")


def _finish_reload(model: torch.nn.Module) -> None:
    """Make the packed CPU weight of every language-model head again. Call after `finalize_layerwise_reload`.

    On CPU a head that shares the embedding's parameter keeps a matrix product prepared from the old weight. The
    layerwise reload sees the parameter only once and does not prepare the product again.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class _GlooTransport(WeightTransferEngine[GlooInit, GlooUpdate]):
    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    group: torch.distributed.ProcessGroup | None = None
    memory: Buffers | SharedView

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.bucket_bytes = init_info.bucket_bytes
        self.memory = Buffers(self.bucket_bytes, BUFFERS) if init_info.shared is None else SharedView(init_info.shared)
        store = join_store(init_info.host, init_info.port, init_info.timeout_s)
        self.group = gloo_group(store, rank, init_info.world_size, init_info.timeout_s)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if isinstance(self.memory, SharedView):
            self.memory.end()

    def receive_weights(self, update_info: GlooUpdate) -> None:
        metas = [
            TensorMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        if isinstance(self.memory, SharedView):
            self.memory.begin()
        buckets = list(cut_into_buckets(metas, self.bucket_bytes))
        arriving = [self._receive(buckets[0])] if buckets else []
        with torch.no_grad():
            for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
                work, buffer = arriving.pop()
                work.wait()
                if following is not None:
                    arriving.append(self._receive(following))  # while this bucket is loaded
                self.model.load_weights(unpack_bucket(buffer, bucket))  # pyright: ignore

    def _receive(self, bucket: Sequence[TensorMeta]) -> tuple[Any, torch.Tensor]:
        """Begin to receive a bucket. Return gloo's work to wait for, and the memory that holds the bucket then."""
        assert self.group is not None
        buffer = self.memory.take(packed_size(bucket))
        shared = isinstance(self.memory, SharedView)
        return self.group.broadcast(torch.zeros(1, dtype=torch.uint8) if shared else buffer, 0), buffer

    def shutdown(self) -> None:
        self.group = None


class GlooReceiver(_Checked, _GlooTransport):
    """Weights through shared memory, or over TCP with gloo, for engines on CPU."""

    digest = staticmethod(bytes_digest)


class NcclReceiver(_Checked, NCCLWeightTransferEngine):
    """Weights over NCCL, for engines that do not share the learner's GPUs."""


class IpcReceiver(_Checked, IPCWeightTransferEngine):
    """Weights through CUDA IPC, for an engine that shares the learner's GPU."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        """Add the fields that the sender left out of the handles: a packed buffer is always a flat uint8 tensor."""
        fixed = (1,), 0, torch.storage.TypedStorage, torch.uint8
        handles = {
            gpu: (torch.Tensor, torch.Size([size]), *fixed, *rest)
            for gpu, (size, rest) in update_dict["ipc_handles"].items()
        }
        return super().parse_update_info(update_dict | {"ipc_handles": handles})


class WorkerExtension:
    """Methods that vLLM adds to each of its workers. `collective_rpc` calls them by name."""

    def received_digests(self) -> dict[str, int]:
        """Return the checksum of each tensor of the last sync, by Hugging Face name."""
        return {name: int(digest) for name, digest in self.weight_transfer_engine.digests.items()}  # pyright: ignore

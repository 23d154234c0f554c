"""The learner's end of the weight-sync channel: buckets of new parameters to every engine.

gloo is spoken here; nccl and ipc are vLLM's own trainer engines, imported when they are asked for. Either way
one `update_weights` call per engine and sync, parameters gathered bucket by bucket on all ranks together, and
a checksum of every tensor for the manifest.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from learner.deepspeed_engine import TrainEngine
from learner.weight_sync.engine_client import EngineClient
from learner.weight_sync.gloo_sender import GlooSender
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.errors import RemoteError
from maxpo.runtime.background import Background
from maxpo.types import Receiver, WeightManifest

T = TypeVar("T")


class WeightSender:
    """Publishes versions of the policy to whichever engines there are."""

    def __init__(
        self,
        engine: TrainEngine,
        *,
        backend: str,
        dtype: torch.dtype,
        bucket_bytes: int,
        timeout_s: float,
        rank: int,
        host: str,
    ) -> None:
        """Nothing is connected before the first `publish`."""
        self._source = ParameterSource(engine, dtype, bucket_bytes, keep=rank == 0 or backend == "ipc")
        self._backend, self._bucket_bytes, self._timeout_s = backend, bucket_bytes, timeout_s
        self._rank, self._host = rank, host
        self._members: list[Any] | None = None
        self._transport: Any = None

    def publish(self, version: int, receivers: Sequence[Receiver]) -> WeightManifest | None:
        """Send the parameters as `version`; on rank 0 the manifest to compare with. Collective.

        The group is built anew when the set of receivers has changed.

        Raises:
            RemoteError: an engine failed. Over gloo other receivers may be published to then, over nccl and ipc
                this rank may be left in a broken transfer.
        """
        members = [receiver.actor for receiver in receivers]
        self._source.begin()
        try:
            if members != self._members:
                self._members = None
                self._client = EngineClient(receivers, self._timeout_s)
                self._transport = self._connect()
                self._members = members
            self._client.version = version
            self._transport.send_weights()
        except Exception:
            # Without its end of the connections the engines that wait for the rest fail at once.
            self._members = self._transport = None
            if self._backend == "gloo":
                self._source.finish()
            raise
        if self._rank:
            return None
        info, digests = self._source.update_info(), self._source.digests
        return WeightManifest(
            version=version,
            names=tuple(info["names"]),
            dtypes=tuple(info["dtype_names"]),
            shapes=tuple(meta.shape for meta in self._source.metas),
            digests=tuple(int(digests[name]) for name in info["names"]),
        )

    def _connect(self) -> Any:
        if self._backend == "gloo":
            return GlooSender(
                self._source,
                self._client,
                rank=self._rank,
                host=self._host,
                timeout_s=self._timeout_s,
                bucket_bytes=self._bucket_bytes,
            )
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._backend == "ipc":
            # One buffer holds whole tensors, so the largest must fit.
            size = max(self._bucket_bytes, *(meta.nbytes for meta in self._source.metas))
            info: Any = IPCTrainerInitInfo(rank=self._rank, packed=True, packed_buffer_size_bytes=size)
        else:
            info = NCCLTrainerInitInfo(
                rank=self._rank,
                master_address=self._host,
                master_port=_free_port(self._host),
                world_size=1 + sum(receiver.workers for receiver in self._client.receivers),
                packed_buffer_size_bytes=self._bucket_bytes,
            )
        source: Any = self._source
        transport = self._bounded(
            lambda: WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)
        )
        return _Bounded(transport, self._bounded)

    def _bounded(self, work: Callable[[], T]) -> T:
        """Run vLLM's side of a transfer with a deadline, which NCCL itself does not have.

        Raises:
            RemoteError: an engine failed meanwhile, or `sync.timeout_s` is over.
        """
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def on_device() -> T:
            if device is not None:
                torch.cuda.set_device(device)
            return work()

        # If an engine is gone, the thread may stay in NCCL for ever.
        running = Background(on_device)
        end = time.monotonic() + self._timeout_s
        while not running.done:
            running.wait(0.05)
            if self._client.failure is not None:
                raise self._client.failure
            if time.monotonic() > end:
                names = ", ".join(receiver.name for receiver in self._client.receivers)
                raise RemoteError(f"sending weights to {names} did not finish within {self._timeout_s:g} s")
        return running.result()


class _Bounded:
    """A trainer engine of vLLM whose `send_weights` has a deadline."""

    def __init__(self, transport: Any, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._transport, self._run = transport, run

    def send_weights(self) -> None:
        """Push all parameters."""
        self._run(self._transport.send_weights)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]

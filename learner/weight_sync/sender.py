"""The learner's end of the weight-sync channel: buckets of new parameters to every engine.

gloo and shm are implemented here. nccl and ipc are vLLM's own trainer engines, imported when they are asked for. All
make one call per engine and sync for the weights, and gather them bucket by bucket on all ranks together. A checksum of
every tensor goes into the manifest, with those that the engines confirm.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from learner.deepspeed_engine import TrainEngine
from learner.weight_sync.engine_client import EngineClient
from learner.weight_sync.gloo_sender import GlooSender
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.errors import RemoteError
from maxpo.runtime.background import Background
from maxpo.types import Receiver, WeightManifest

T = TypeVar("T")


class Transport(Protocol):
    """Connection to the engines: `GlooSender`, or a trainer engine of vLLM."""

    def send_weights(self) -> None:
        """Send all weights."""
        ...


class WeightSender:
    """Sender of versions of the policy to the engines that exist at the time."""

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
        """Remember the settings. Nothing is connected before the first `publish`."""
        self._source = ParameterSource(engine, dtype, bucket_bytes, keep=rank == 0 or backend == "ipc")
        self._backend, self._bucket_bytes, self._timeout_s = backend, bucket_bytes, timeout_s
        self._rank, self._host = rank, host
        self._members: list[object] | None = None
        self._transport: Transport | None = None

    def publish(self, version: int, receivers: Sequence[Receiver]) -> WeightManifest | None:
        """Send the weights as `version` and return the manifest to compare with, None except on rank 0. Collective.

        The group is built anew when the receivers have changed.

        Raises:
            RemoteError: an engine failed. Over gloo and shm other receivers may be published to then, over nccl and ipc
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
            assert self._transport is not None
            self._client.version = version
            self._transport.send_weights()
        except Exception:
            # The engines that wait for the rest fail at once when this end of the connections is gone.
            self._members = self._transport = None
            if self._backend in ("gloo", "shm"):
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
            received=self._client.received,
        )

    def _connect(self) -> Transport:
        if self._backend in ("gloo", "shm"):
            return GlooSender(
                self._source,
                self._client,
                rank=self._rank,
                host=self._host,
                timeout_s=self._timeout_s,
                bucket_bytes=self._bucket_bytes,
                share=self._backend == "shm",
            )
        return Limited(self._within_deadline(self._connect_vllm), self._within_deadline)

    def _connect_vllm(self) -> Transport:
        """Return vLLM's trainer engine for nccl or ipc, connected."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._backend == "ipc":
            # One buffer holds whole tensors, so the largest tensor must fit.
            size = max(self._bucket_bytes, *(meta.nbytes for meta in self._source.metas))
            info = IPCTrainerInitInfo(rank=self._rank, packed=True, packed_buffer_size_bytes=size)
        else:
            info = NCCLTrainerInitInfo(
                rank=self._rank,
                master_address=self._host,
                master_port=_free_port(self._host),
                world_size=1 + sum(receiver.workers for receiver in self._client.receivers),
                packed_buffer_size_bytes=self._bucket_bytes,
            )
        source: Any = self._source  # has the methods of vLLM's WeightSource, but must not import vLLM to inherit
        return WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def _within_deadline(self, work: Callable[[], T]) -> T:
        """Run vLLM's side of a transfer with a deadline, which NCCL itself does not have.

        Raises:
            RemoteError: an engine failed meanwhile, or `sync.timeout_s` is over.
        """
        # A new thread starts on GPU 0, whatever the current device of its parent is.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def on_device() -> T:
            if device is not None:
                torch.cuda.set_device(device)
            return work()

        # In the background, because the thread may stay in NCCL for ever if an engine is gone.
        running = Background(on_device)
        end = time.monotonic() + self._timeout_s
        while not running.done:
            running.wait(0.05)
            # The engine's own error names the engine. NCCL would only wait for the engine until the deadline.
            if self._client.failure is not None:
                raise self._client.failure
            if time.monotonic() > end:
                names = ", ".join(receiver.name for receiver in self._client.receivers)
                raise RemoteError(f"sending weights to {names} did not finish within {self._timeout_s:g} s")
        return running.result()


class Limited:
    """A trainer engine of vLLM whose `send_weights` has a deadline."""

    def __init__(self, transport: Transport, run: Callable[[Callable[[], None]], None]) -> None:
        """Call `transport` by `run`."""
        self._transport, self._run = transport, run

    def send_weights(self) -> None:
        """Send all weights."""
        self._run(self._transport.send_weights)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]

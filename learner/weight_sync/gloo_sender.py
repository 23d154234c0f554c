"""Weights by gloo broadcasts, or through memory that engines on this host share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from learner.weight_sync.engine_client import EngineClient
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.types import Receiver
from maxpo.weights.buckets import cut_into_buckets, packed_size
from maxpo.weights.rendezvous import gloo_group, serve_store
from maxpo.weights.shared_memory import SharedMemory

LOG = logging.getLogger(__name__)


class GlooSender:
    """Sender of buckets. Engines that share memory with the learner only get a byte when a bucket is ready there."""

    def __init__(
        self,
        source: ParameterSource,
        client: EngineClient,
        *,
        rank: int,
        host: str,
        timeout_s: float,
        bucket_bytes: int,
        share: bool,
    ) -> None:
        """Connect with the engines (rank 0 only).

        Args:
            source: weights.
            client: client of the engines.
            rank: rank of this process.
            host: address of this process.
            timeout_s: deadline of every operation in seconds.
            bucket_bytes: size of a bucket.
            share: True to share memory with the engines that can.
        """
        self._source, self._client, self._rank = source, client, rank
        if rank:
            return
        sizes = [packed_size(bucket) for bucket in cut_into_buckets(source.metas, bucket_bytes)]
        memory = SharedMemory(sum(sizes)) if share else None
        near = client.sharing(memory.path, memory.token) if memory else []
        far = [receiver for receiver in client.receivers if receiver not in near]
        if share:
            LOG.warning("weights in shared memory: %s; over TCP: %s", _names(near), _names(far))
        self._memory = memory if memory and near else TwoBuffers(max(sizes, default=0))
        common = {"host": host, "bucket_bytes": bucket_bytes, "timeout_s": timeout_s}
        groups = [_Group(near, host, timeout_s), _Group(far, host, timeout_s)]
        infos = groups[0].infos(common | {"shared": memory.path if memory else None})
        infos |= groups[1].infos(common | {"shared": None})
        with ThreadPoolExecutor(max_workers=1) as side:
            # The engines block until the learner joins, so both must happen at once.
            joined = side.submit(client.connect, infos)
            try:
                self._near, self._far = (group.join() for group in groups)
            finally:
                joined.result()  # the error of an engine names the engine, gloo's own error does not
        self._groups = groups

    def send_weights(self) -> None:
        """Send all weights. Collective over the ranks, of which rank 0 alone talks to the engines."""
        if self._rank:
            # Gathering a bucket is collective, so the other ranks go through all of them too.
            for _ in self._source.buckets():
                pass
            return
        starting = self._client.begin_starting()
        pending: dict[str, Any] = {}
        self._memory.begin()
        sending: list[Any] = []
        ready = torch.zeros(1, dtype=torch.uint8)
        for bucket in self._source.buckets():
            # The bucket before is on its way meanwhile.
            packed = self._memory.take(packed_size([meta for meta, _ in bucket]))
            self._source.pack(bucket, packed)
            if not pending:
                self._client.finish_starting(starting)
                pending = self._client.begin_receiving(self._source.update_info())
            # An engine that failed never joins the broadcast: raise now, not after gloo's timeout.
            failed, _ = ray.wait(list(pending.values()), timeout=0)
            if failed:
                break
            try:
                if isinstance(self._memory, TwoBuffers) and sending:
                    sending[-1].wait()  # the next bucket takes its place
                if self._near:
                    sending.append(self._near.broadcast(ready, 0))
                if self._far:
                    sending.append(self._far.broadcast(packed, 0))
            except RuntimeError:
                break  # an engine is gone; its own error below names the engine
        self._client.finish_receiving(pending)
        for work in sending:
            work.wait()


class _Group:
    """A group of the learner, which has rank 0, and some engines. Maybe of no engine."""

    def __init__(self, members: Sequence[Receiver], host: str, timeout_s: float) -> None:
        """Open the rendezvous."""
        self._members, self._timeout_s = members, timeout_s
        self._size = 1 + sum(receiver.workers for receiver in members)
        if members:
            self._store, self._port = serve_store(host, timeout_s)

    def infos(self, common: Mapping[str, object]) -> dict[str, dict[str, object]]:
        """Return the information that each engine joins with, by its name."""
        found: dict[str, dict[str, object]] = {}
        offset = 1
        for receiver in self._members:
            own = {"port": self._port, "world_size": self._size, "rank_offset": offset}
            found[receiver.name] = {**common, **own}
            offset += receiver.workers
        return found

    def join(self) -> Any:
        """Return gloo's group once all members have joined, or None if the group has no engine."""
        return gloo_group(self._store, 0, self._size, self._timeout_s) if self._members else None


class TwoBuffers:
    """Memory for two buckets, which take turns."""

    def __init__(self, size: int) -> None:
        """Allocate memory for buckets of at most `size` bytes."""
        self._buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(2)]

    def begin(self) -> None:
        """Begin a sync."""

    def take(self, nbytes: int) -> torch.Tensor:
        """Return the place of the next bucket, a flat uint8 tensor. It is that of the bucket before the last one."""
        self._buffers.reverse()
        return self._buffers[0][:nbytes]


def _names(receivers: Sequence[Receiver]) -> str:
    return ", ".join(receiver.name for receiver in receivers) or "no engine"

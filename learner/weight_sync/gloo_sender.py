"""Weights by gloo broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from torch import Tensor

from learner.weight_sync.engine_client import EngineClient
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.weights.buckets import TensorMeta, packed_size, unpack_bucket
from maxpo.weights.checksum import bytes_digest
from maxpo.weights.rendezvous import gloo_group, serve_store


class GlooSender:
    """Sender of buckets by gloo broadcasts."""

    def __init__(
        self,
        source: ParameterSource,
        client: EngineClient,
        *,
        rank: int,
        host: str,
        timeout_s: float,
        bucket_bytes: int,
    ) -> None:
        """Connect with the engines (rank 0 only)."""
        self._source, self._client, self._rank, self._bucket_bytes = source, client, rank, bucket_bytes
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        if rank:
            return
        self._store, port = serve_store(host, timeout_s)
        world_size = 1 + sum(receiver.workers for receiver in client.receivers)
        info = {
            "host": host,
            "port": port,
            "rank_offset": 1,
            "world_size": world_size,
            "bucket_bytes": bucket_bytes,
            "timeout_s": timeout_s,
        }
        with ThreadPoolExecutor(max_workers=1) as side:
            # The engines block until the learner joins, so both must happen at once.
            joined = side.submit(client.init_weight_transfer_engine, info)
            try:
                self._group = gloo_group(self._store, 0, world_size, timeout_s)
            finally:
                joined.result()  # the error of an engine names the engine, gloo's own error does not

    def send_weights(self) -> None:
        """Send all weights. Collective over the ranks, of which rank 0 alone talks to the engines."""
        if self._rank:
            # Gathering a bucket is collective, so the other ranks go through all of them too.
            for _ in self._source.buckets():
                pass
            return
        self._client.start_weight_update()
        pending = self._client.begin_receiving(self._source.update_info())
        sending: Any = None
        for number, bucket in enumerate(self._source.buckets()):
            # The bucket before is on its way meanwhile, from the other buffer.
            packed = self._packed(number, bucket)
            # An engine that failed never joins the broadcast: raise now, not after gloo's timeout.
            failed, _ = ray.wait(list(pending.values()), timeout=0)
            if failed:
                break
            try:
                if sending is not None:
                    sending.wait()
                sending = self._group.broadcast(packed, 0)
            except RuntimeError:
                break  # an engine is gone; its own error below names the engine
        self._client.finish_receiving(pending)
        if sending is not None:
            sending.wait()

    def _packed(self, number: int, bucket: Sequence[tuple[TensorMeta, Tensor]]) -> Tensor:
        """Return the bucket in the format of the wire, in one of two buffers. Takes the checksums."""
        metas = [meta for meta, _ in bucket]
        size = packed_size(metas)
        if len(self._buffers[number % 2]) < size:
            self._buffers[number % 2] = torch.empty(max(size, self._bucket_bytes), dtype=torch.uint8)
        packed = self._buffers[number % 2][:size]
        for (_, tensor), (name, place) in zip(bucket, unpack_bucket(packed, metas), strict=True):
            place.copy_(tensor)
            self._source.digests[name] = bytes_digest(place)
        return packed

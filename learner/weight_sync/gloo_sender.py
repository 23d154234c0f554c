"""Weights by gloo broadcasts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import ray
import torch

from learner.weight_sync.engine_client import EngineClient
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.runtime.ray_calls import wait_for
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
        self._source, self._client, self._rank, self._timeout_s = source, client, rank, timeout_s
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
        pending = self._client.begin_update_weights(self._source.update_info())
        for bucket in self._source.buckets():
            # An engine that failed never joins the broadcast: raise now, not after gloo's timeout.
            failed, _ = ray.wait(list(pending.values()), timeout=0)
            if failed:
                break
            buffer = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, tensor in bucket]).cpu()
            try:
                self._group.broadcast(buffer, 0).wait()
            except RuntimeError:
                break  # an engine is gone; its own error below names the engine
        wait_for(pending, timeout_s=self._timeout_s, doing="receiving weights")
        self._client.finish_weight_update()

"""Rendezvous of the processes that exchange weights."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # pyright: ignore


def serve_store(host: str, timeout_s: float) -> tuple[TCPStore, int]:
    """Return a rendezvous store that listens on a free port of `host` only, and that port.

    The socket is bound here, because torch itself would listen on every interface.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """Return a client of the store that listens at `host:port`."""
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def gloo_group(store: Store, rank: int, world_size: int, timeout_s: float) -> Any:
    """Return a gloo group apart from the default group of the process. Block until all ranks have joined.

    Raises:
        RuntimeError: a rank is missing after `timeout_s` seconds. Every later operation has the same deadline.
    """
    return ProcessGroupGloo(PrefixStore("maxpo", store), rank, world_size, timedelta(seconds=timeout_s))

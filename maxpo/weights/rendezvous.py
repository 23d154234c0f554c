"""How processes that exchange weights meet."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # pyright: ignore


def serve_store(host: str, timeout_s: float) -> tuple[TCPStore, int]:
    """A rendezvous store on a free port of the address `host` alone, and that port.

    The socket is bound before the store sees it: torch itself would listen on every interface.
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
    """A client of the store that listens at `host:port`."""
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def gloo_group(store: Store, rank: int, world_size: int, timeout_s: float) -> Any:
    """A gloo group of its own, apart from the process's default group. Blocks until all ranks are there.

    Raises:
        RuntimeError: a rank is missing after `timeout_s` seconds; every later operation has the same limit.
    """
    return ProcessGroupGloo(PrefixStore("maxpo", store), rank, world_size, timedelta(seconds=timeout_s))

"""Hosts on one machine: network namespaces with addresses of their own, joined by a virtual cable.

    python -m tests.hosts up      # leaves maxpo-a (10.77.0.1) and maxpo-b (10.77.0.2) for trying things by hand
    python -m tests.hosts down    # ends what runs in them and removes them

Needs root and the program ip (iproute2).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


class NoHostsError(Exception):
    """This machine does not let us make network namespaces."""


@dataclass(frozen=True)
class Host:
    """A network namespace with the interface eth0."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """The words as a command that runs on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut_off(self) -> None:
        """Pull the cable out."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """And back in."""
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def end_processes(self) -> None:
        """End everything that runs here, gently first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(30):
                pids = _ip("netns", "pids", self.name).split()
                if not pids:
                    return
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), number)
                time.sleep(0.2)


def up(prefix: str) -> tuple[Host, Host]:
    """Two hosts, prefix-a and prefix-b.

    Raises:
        NoHostsError: with what `ip` said.
    """
    a, b = (Host(f"{prefix}-{letter}", f"10.77.0.{number}") for letter, number in (("a", 1), ("b", 2)))
    try:
        for host in (a, b):
            _ip("netns", "add", host.name)
        _ip("-n", a.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.name)
        for host in (a, b):
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", interface, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        for host in (a, b):
            down(host)
        raise NoHostsError(f"no network namespaces here: {getattr(error, 'stderr', None) or error}") from error
    return a, b


def down(host: Host) -> None:
    """End what runs on the host and remove it; nothing where it is not there."""
    with suppress(OSError, subprocess.CalledProcessError):
        host.end_processes()
        _ip("netns", "del", host.name)


@contextmanager
def two_hosts(prefix: str) -> Iterator[tuple[Host, Host]]:
    """Two hosts, and the end of everything on them."""
    hosts = up(prefix)
    try:
        yield hosts
    finally:
        for host in hosts:
            down(host)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


if __name__ == "__main__":
    if sys.argv[1:] == ["up"]:
        print(*up("maxpo"), sep="\n")
    elif sys.argv[1:] == ["down"]:
        for letter in "ab":
            down(Host(f"maxpo-{letter}", ""))
    else:
        sys.exit(__doc__)

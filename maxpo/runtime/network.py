"""The network interface that gloo and NCCL use."""

from __future__ import annotations

import os
import socket

import psutil

from maxpo.errors import InputError

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface(address: str, interface: str | None) -> str:
    """Have gloo and NCCL of this process, and of those that it starts, use one interface; its IPv4 address.

    Left to themselves they may take another than their peers, and wait for each other for ever.

    Args:
        address: of this node, in Ray.
        interface: named by the user; None: the one that has `address`. What the environment says already stays then.

    Raises:
        InputError: there is no such interface, or none has the address.
    """
    found = {
        name: [a.address for a in addresses if a.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    if interface is None:
        named = next((name for name, addresses in found.items() if address in addresses), None)
        if named is None:
            raise InputError(f"no network interface of {socket.gethostname()} has its address {address}: {found}")
        os.environ.setdefault(NAMES[0], named)
        os.environ.setdefault(NAMES[1], f"={named}")
        return address
    if not found.get(interface):
        raise InputError(
            f"cluster.interface = {interface}: {socket.gethostname()} has no such interface with an IPv4 address; it "
            f"has {', '.join(sorted(name for name, addresses in found.items() if addresses))}"
        )
    os.environ |= {NAMES[0]: interface, NAMES[1]: f"={interface}"}
    return address if address in found[interface] else found[interface][0]

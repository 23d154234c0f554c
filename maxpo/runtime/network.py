"""The network interface that gloo and NCCL use."""

from __future__ import annotations

import os
import socket

import psutil

from maxpo.errors import InputError

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface(address: str, interface: str | None) -> str:
    """Make gloo and NCCL of this process and its children use one interface, and return its IPv4 address.

    Otherwise two processes may choose interfaces that do not reach each other, and wait for ever.

    Args:
        address: address of this node in Ray.
        interface: name from the user. None: the interface with `address`, unless the environment names one already.

    Raises:
        InputError: the interface does not exist, or no interface has the address.
    """
    if interface is None:
        interfaces = _interfaces()
        named = next((name for name, addresses in interfaces.items() if address in addresses), None)
        if named is None:
            raise InputError(f"no network interface of {socket.gethostname()} has its address {address}: {interfaces}")
        os.environ.setdefault(NAMES[0], named)
        os.environ.setdefault(NAMES[1], f"={named}")
        return address
    own = require_interface(interface)
    os.environ |= {NAMES[0]: interface, NAMES[1]: f"={interface}"}
    return address if address in own else own[0]


def require_interface(name: str) -> list[str]:
    """Return the IPv4 addresses of an interface of this machine.

    Raises:
        InputError: there is no such interface with an address.
    """
    interfaces = _interfaces()
    if not interfaces.get(name):
        raise InputError(
            f"cluster.interface = {name}: {socket.gethostname()} has no such interface with an IPv4 address; it has "
            f"{', '.join(sorted(known for known, addresses in interfaces.items() if addresses))}"
        )
    return interfaces[name]


def _interfaces() -> dict[str, list[str]]:
    """Return the IPv4 addresses of each interface."""
    return {
        name: [a.address for a in addresses if a.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }

"""The interface of gloo and NCCL, and paths that other nodes need."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from maxpo.errors import InputError
from maxpo.runtime.network import NAMES, use_interface


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three interfaces, one without an IPv4 address, and nothing in the environment."""

    def address(text: str, family: int = socket.AF_INET) -> SimpleNamespace:
        return SimpleNamespace(address=text, family=family)

    found = {
        "lo": [address("127.0.0.1"), address("::1", socket.AF_INET6)],
        "eth0": [address("10.0.0.7"), address("10.0.0.8")],
        "ib0": [address("192.168.1.7")],
        "ib1": [address("fe80::1%ib1", socket.AF_INET6)],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    for name in (*NAMES, "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def chosen() -> tuple[str | None, str | None]:
    gloo, nccl = (os.environ.get(name) for name in NAMES)
    return gloo, nccl


def test_the_one_that_has_the_nodes_address() -> None:
    assert use_interface("10.0.0.8", None) == "10.0.0.8"
    assert chosen() == ("eth0", "=eth0")
    # Another process of the same environment decides the same, whatever it is asked then.
    assert use_interface("192.168.1.7", None) == "192.168.1.7"
    assert chosen() == ("eth0", "=eth0")


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[1], "ib0,ib1")
    use_interface("10.0.0.7", None)
    assert chosen() == ("eth0", "ib0,ib1")


def test_a_named_one_overrules_and_gives_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "eth0")
    assert use_interface("10.0.0.7", "ib0") == "192.168.1.7"
    assert chosen() == ("ib0", "=ib0")
    assert use_interface("10.0.0.8", "eth0") == "10.0.0.8"  # of several, the node's own


@pytest.mark.parametrize(
    ("address", "interface", "message"),
    [
        ("10.0.0.7", "eth7", "cluster.interface = eth7: .* it has eth0, ib0, lo"),
        ("10.0.0.7", "ib1", "no such interface with an IPv4 address"),
        ("10.9.9.9", None, "no network interface of .* has its address 10.9.9.9"),
    ],
)
def test_what_is_not_there_is_refused(address: str, interface: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        use_interface(address, interface)
    assert chosen() == (None, None)

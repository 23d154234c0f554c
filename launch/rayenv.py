"""Environment variables that Ray reads when it is imported; so this must run, and be imported, before ray."""

from __future__ import annotations

import os
import secrets
import sys


def secure_own_cluster() -> None:
    """Prepare this process to start a Ray cluster of its own: authenticated, on loopback, at normal priority.

    Raises:
        RuntimeError: ray was imported already with other authentication settings.
    """
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off: Ray keeps to loopback instead of the machine's address
        "RAY_worker_niceness": "0",  # Ray's default of 15 starves its workers beside any other busy process
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    if all(os.environ.get(name) == value for name, value in settings.items() if name != "RAY_AUTH_TOKEN"):
        return  # done before in this process
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before its authentication was set up: call secure_own_cluster() first")
    os.environ |= settings

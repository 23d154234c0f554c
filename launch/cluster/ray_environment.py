"""Choice of the Ray cluster, and the environment variables that Ray reads when it is imported.

Therefore this module must be imported, and its functions called, before ray is imported.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from maxpo.config import Config, RayConfig
from maxpo.config.cluster import is_host_port
from maxpo.errors import InputError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
NEEDS_NO_TOKEN = (
    "needs no token, so whoever reaches it can run code there: start it with RAY_AUTH_MODE=token, or accept that "
    "with ray.require_token=false"
)
EVERY_CLUSTER = {
    MODE: "token",
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves its workers beside any other busy process
    "RAY_enable_worker_prestart": "0",  # an actor with environment variables of its own cannot use such a worker
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables of every process of a Ray cluster that is started for a run."""


def cluster_address(settings: RayConfig) -> str | None:
    """Return the running cluster that a run joins, as host:port or auto, or None if the run starts its own cluster.

    Raises:
        InputError: RAY_ADDRESS is neither host:port nor auto nor local.
    """
    if settings.address not in (None, "auto"):
        return None if settings.address == "local" else settings.address
    address = os.environ.get("RAY_ADDRESS") or settings.address
    if address is None or address == "local":
        return None
    if address != "auto" and not is_host_port(address):
        raise InputError(
            f"RAY_ADDRESS = {address}: a run needs host:port of the cluster's head, such as 10.0.0.1:6379; http:// is "
            "for maxpo submit ray, and Ray Client (ray://) is not supported. Set ray.address, or unset it"
        )
    return address


def require_one_node(config: Config) -> None:
    """Raise InputError if a run that starts its own cluster asks for several nodes."""
    if config.cluster.nodes > 1:
        raise InputError(
            f"cluster.nodes = {config.cluster.nodes}, but a run that starts its own cluster has one node: give the "
            "address of a running cluster by ray.address or RAY_ADDRESS"
        )


def prepare_ray(settings: RayConfig) -> None:
    """Set the environment variables for the cluster that the settings name.

    Raises:
        InputError: see `cluster_address` and `use_token`.
        RuntimeError: ray was imported already with other authentication settings.
    """
    if cluster_address(settings) is None:
        secure_own_cluster()
    else:
        use_token(required=settings.require_token)
        os.environ |= EVERY_CLUSTER | {MODE: os.environ[MODE]}  # the value that use_token has set


def secure_own_cluster() -> None:
    """Prepare this process to start its own Ray cluster: with a token, on loopback, at normal priority.

    Raises:
        RuntimeError: ray was imported already with other authentication settings.
    """
    settings = EVERY_CLUSTER | {
        TOKEN: secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off: Ray stays on loopback and does not use the machine's address
    }
    os.environ["RAY_ADDRESS"] = "local"  # otherwise Ray looks for another cluster
    if all(os.environ.get(name) == value for name, value in settings.items() if name != TOKEN):
        return  # an earlier call in this process did it
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before its authentication was set up: call secure_own_cluster() first")
    os.environ |= settings


def use_token(*, required: bool) -> str | None:
    """Let Ray authenticate with the token of the cluster. Return the token, from the source that Ray itself uses.

    Args:
        required: raise if there is no token, or if RAY_AUTH_MODE is disabled.

    Raises:
        InputError: the token cannot be read, or is required and missing.
    """
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    token = os.environ.get(TOKEN)
    if not token:
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            if os.environ.get(TOKEN_PATH):
                raise InputError(f"{TOKEN_PATH} = {path}: the token cannot be read: {error.strerror}") from error
    disabled = os.environ.get(MODE, "token").lower() == "disabled"
    if required and (disabled or not token):
        reason = f"{MODE} = disabled" if disabled else f"neither {TOKEN} nor {TOKEN_PATH} is set, and {path} is missing"
        raise InputError(
            f"a running Ray cluster is used with token authentication, but {reason}: set {TOKEN_PATH} to the file with "
            "the cluster's token, or accept a cluster that anybody can run code in with ray.require_token=false"
        )
    if disabled or not token:
        os.environ[MODE] = "disabled"
        return None
    os.environ[MODE] = "token"
    return token

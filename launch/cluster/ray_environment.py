"""Which Ray cluster a command uses, and the environment that Ray reads when it is imported.

So this must run, and be imported, before ray.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from maxpo.config import RayConfig
from maxpo.config.cluster import is_host_port
from maxpo.errors import InputError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LETS_EVERYBODY_IN = (
    "lets everybody in, and whoever reaches it can run code there: start it with RAY_AUTH_MODE=token, or accept that "
    "with ray.require_token=false"
)
EVERY_CLUSTER = {
    MODE: "token",
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves its workers beside any other busy process
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What every process of a Ray cluster needs that is started for a run."""


def cluster_address(settings: RayConfig) -> str | None:
    """The running cluster that a run joins, as host:port or auto; None where it starts one of its own.

    Raises:
        InputError: RAY_ADDRESS is of another kind.
    """
    if settings.address not in (None, "auto"):
        return None if settings.address == "local" else settings.address
    found = os.environ.get("RAY_ADDRESS") or settings.address
    if found is None or found == "local":
        return None
    if found != "auto" and not is_host_port(found):
        raise InputError(
            f"RAY_ADDRESS = {found}: a run needs host:port of the cluster's head, such as 10.0.0.1:6379; http:// is "
            "for maxpo submit ray, and Ray Client (ray://) is not supported. Set ray.address, or unset it"
        )
    return found


def prepare_ray(settings: RayConfig) -> None:
    """Set the environment for the cluster that these settings name.

    Raises:
        InputError: see `cluster_address` and `use_token`.
        RuntimeError: ray was imported already with other authentication settings.
    """
    if cluster_address(settings) is None:
        secure_own_cluster()
    else:
        use_token(required=settings.require_token)
        os.environ |= EVERY_CLUSTER | {MODE: os.environ[MODE]}  # as use_token has set it


def secure_own_cluster() -> None:
    """Prepare this process to start a Ray cluster of its own: authenticated, on loopback, at normal priority.

    Raises:
        RuntimeError: ray was imported already with other authentication settings.
    """
    settings = EVERY_CLUSTER | {
        TOKEN: secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # off: Ray keeps to loopback instead of the machine's address
    }
    os.environ["RAY_ADDRESS"] = "local"  # Ray would look for another cluster instead
    if all(os.environ.get(name) == value for name, value in settings.items() if name != TOKEN):
        return  # done before in this process
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before its authentication was set up: call secure_own_cluster() first")
    os.environ |= settings


def use_token(*, required: bool) -> str | None:
    """Have Ray authenticate with the token of the cluster, from where Ray itself looks for it; the token.

    Args:
        required: having none, or RAY_AUTH_MODE=disabled, is an error.

    Raises:
        InputError: there is no token.
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
        found = f"{MODE} = disabled" if disabled else f"neither {TOKEN} nor {TOKEN_PATH} is set, nor is there {path}"
        raise InputError(
            f"a running Ray cluster is used with token authentication, but {found}: set {TOKEN_PATH} to the file with "
            "the cluster's token, or accept a cluster that anybody can run code in with ray.require_token=false"
        )
    if disabled or not token:
        os.environ[MODE] = "disabled"
        return None
    os.environ[MODE] = "token"
    return token

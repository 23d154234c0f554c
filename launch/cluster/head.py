"""A first question to the head of a running cluster, before Ray connects to it."""

from __future__ import annotations

from typing import Any

import grpc
from ray.core.generated import gcs_service_pb2

from launch.cluster.ray_environment import NEEDS_NO_TOKEN, cluster_address, use_token
from maxpo.config import RayConfig
from maxpo.errors import InputError

CONNECT_S = 5.0
"""Deadline of the first answer, in seconds."""


def reach(settings: RayConfig) -> None:
    """Check that the running cluster answers and takes the token, if the settings name one.

    Raises:
        InputError: see `check_head` and `use_token`.
    """
    address = cluster_address(settings)
    if address not in (None, "auto"):  # only Ray knows what auto means
        check_head(address, use_token(required=settings.require_token), require_token=settings.require_token)


def check_head(address: str, token: str | None, *, require_token: bool) -> None:
    """Ask the head of a cluster for an answer. Ray itself tries for minutes and gives no reason when it fails.

    Raises:
        InputError: the head does not answer, the token is wrong, or `require_token` is on and none is needed.
    """
    denied, answer = grpc.StatusCode.UNAUTHENTICATED, _ask_head(address, token)
    if answer == denied:
        text = "does not accept this token" if token else "wants a token: set RAY_AUTH_TOKEN_PATH to the file with it"
        raise InputError(f"the Ray cluster at {address} {text}")
    if answer is not None:
        raise InputError(
            f"no Ray cluster answers at {address} within {CONNECT_S:g} s ({answer.name.lower()}): does `ray start "
            "--head` run there, with this port, and may this machine reach it? `maxpo doctor` checks more"
        )
    if require_token and _ask_head(address, None) != denied:
        raise InputError(f"the Ray cluster at {address} {NEEDS_NO_TOKEN}")


def _ask_head(address: str, token: str | None) -> grpc.StatusCode | None:
    """Return the error of the smallest call to the head, or None if the call succeeds."""
    messages: Any = gcs_service_pb2
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/ray.rpc.NodeInfoGcsService/GetClusterId",
            request_serializer=messages.GetClusterIdRequest.SerializeToString,
            response_deserializer=messages.GetClusterIdReply.FromString,
        )
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        try:
            call(messages.GetClusterIdRequest(), timeout=CONNECT_S, metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code()
    return None

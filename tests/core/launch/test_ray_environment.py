"""Which Ray cluster is meant, its token, and what is said where it cannot be used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from launch.cluster.head import check_head
from launch.cluster.ray_cluster import cluster
from launch.cluster.ray_environment import cluster_address, use_token
from maxpo.config import RayConfig
from maxpo.configure.loading import load_config
from maxpo.errors import InputError

MAXPO = str(Path(sys.executable).with_name("maxpo"))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the test does
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("address", "environment", "meant"),
    [
        (None, None, None),
        (None, "head:6379", "head:6379"),
        (None, "auto", "auto"),
        (None, "local", None),
        ("local", "head:6379", None),
        ("auto", None, "auto"),
        ("auto", "head:6379", "head:6379"),
        ("10.0.0.1:6379", "http://head:8265", "10.0.0.1:6379"),
    ],
)
def test_which_cluster_is_meant(
    address: str | None, environment: str | None, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert cluster_address(RayConfig(address=address)) == meant


@pytest.mark.parametrize("found", ["http://127.0.0.1:8265", "ray://head:10001", "head"])
def test_an_address_of_another_kind_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", found)
    with pytest.raises(InputError, match=r"RAY_ADDRESS = .*needs host:port"):
        cluster_address(RayConfig())


def test_a_token_comes_from_where_ray_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from home\n")
    assert use_token(required=True) == "from home"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    (tmp_path / "token").write_text("from a file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert use_token(required=True) == "from a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from the environment")
    assert use_token(required=True) == "from the environment"


def test_no_token_is_an_error_unless_it_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set.*require_token=false"):
        use_token(required=True)
    assert use_token(required=False) is None
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "unused")
    with pytest.raises(InputError, match="RAY_AUTH_MODE = disabled"):
        use_token(required=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN_PATH = .*none: the token cannot be read"):
        use_token(required=False)


def maxpo(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run([MAXPO, *words], capture_output=True, text=True, timeout=60, env=clean | env)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    words = ("train", "configs/presets/demo.yaml", f"run.dir={tmp_path}")
    done = maxpo(*words, RAY_ADDRESS="127.0.0.1:1", RAY_AUTH_TOKEN="abc")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "maxpo: no Ray cluster answers at 127.0.0.1:1 within 5 s (unavailable): does `ray start"
    )
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.glob("demo/*")) == []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"no Ray cluster answers at {address} within 5 s"):
            check_head(address, "abc", require_token=True)


def test_more_nodes_than_an_own_cluster_has_are_refused(tmp_path: Path) -> None:
    settings = load_config([Path("configs/presets/demo.yaml")], ["cluster.nodes=2"]).config
    with pytest.raises(InputError, match="a run that starts its own cluster has one node"), cluster(settings, tmp_path):
        pass


class _Head(grpc.GenericRpcHandler):
    """Answers the call that `check_head` makes, to those who have the token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        headers: dict[str, Any] = dict(handler_call_details.invocation_metadata)
        let_in = self._token is None or headers.get("authorization") == f"Bearer {self._token}"

        def answer(request: bytes, context: Any) -> bytes:
            if not let_in:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("heads", "ours", "message"),
    [
        ("abc", "abc", None),
        ("abc", "xyz", "does not accept this token"),
        ("abc", None, "wants a token: set RAY_AUTH_TOKEN_PATH"),
        (None, "abc", "needs no token, so whoever reaches it can run code there"),
    ],
)
def test_who_is_let_in_by_a_head(heads: str | None, ours: str | None, message: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Head(heads)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        if message is None:
            check_head(address, ours, require_token=True)
        else:
            with pytest.raises(InputError, match=message):
                check_head(address, ours, require_token=True)
        if heads is None:
            check_head(address, ours, require_token=False)
    finally:
        server.stop(None)

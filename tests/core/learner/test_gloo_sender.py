"""Weights on their way to engines that share memory with the learner, to others, and to both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.weight_sync.gloo_sender import GlooSender, TwoBuffers
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.types import Receiver
from maxpo.weights.buckets import TensorMeta, cut_into_buckets, packed_size, unpack_bucket
from maxpo.weights.checksum import bytes_digest
from maxpo.weights.rendezvous import gloo_group, join_store
from maxpo.weights.shared_memory import SharedMemory, SharedView

BUCKET = 300


class Engine:
    """Receives as the engines do, in a thread."""

    def __init__(self, name: str, *, finds: bool) -> None:
        self.name, self.finds = name, finds
        self.weights: dict[str, Tensor] = {}

    def connect(self, info: dict[str, Any]) -> None:
        self.view = None if info["shared"] is None else SharedView(info["shared"])
        assert info["bucket_bytes"] == BUCKET
        store = join_store(info["host"], info["port"], info["timeout_s"])
        self.group = gloo_group(store, info["rank_offset"], info["world_size"], info["timeout_s"])

    def receive(self, info: dict[str, Any]) -> None:
        metas = [
            TensorMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        ]
        if self.view is not None:
            self.view.begin()
        for bucket in cut_into_buckets(metas, BUCKET):
            size = packed_size(bucket)
            buffer = torch.zeros(size if self.view is None else 1, dtype=torch.uint8)
            self.group.broadcast(buffer, 0).wait()
            place = buffer if self.view is None else self.view.take(size)
            self.weights |= {name: tensor.clone() for name, tensor in unpack_bucket(place, bucket)}


class Client:
    """`EngineClient` without Ray."""

    def __init__(self, engines: list[Engine]) -> None:
        self.engines = engines
        self.receivers = [Receiver(name=engine.name, actor=engine, workers=1) for engine in engines]

    def sharing(self, path: str, token: bytes) -> list[Receiver]:
        return [receiver for receiver in self.receivers if receiver.actor.finds]

    def connect(self, infos: dict[str, Any]) -> None:
        self._all(lambda engine: engine.connect(infos[engine.name]))()

    def begin_starting(self) -> dict[str, Any]:
        return {}

    def finish_starting(self, pending: dict[str, Any]) -> None:
        pass

    def begin_receiving(self, info: Any) -> dict[str, Any]:
        self.wait = self._all(lambda engine: engine.receive(info))
        return {"all": None}

    def finish_receiving(self, pending: dict[str, Any]) -> None:
        self.wait()

    def _all(self, call: Callable[[Engine], None]) -> Callable[[], None]:
        ends: list[Future[None]] = []
        for engine in self.engines:
            end: Future[None] = Future()

            def run(engine: Engine = engine, end: Future[None] = end) -> None:
                try:
                    end.set_result(call(engine))
                except BaseException as error:
                    end.set_exception(error)

            threading.Thread(target=run, daemon=True).start()
            ends.append(end)

        def wait() -> None:
            for end in ends:
                end.result(30)

        return wait


class Model(nn.Module):
    """Tensors of all sizes and formats."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.randn(40, 30))
        self.parts = nn.ParameterList(torch.randn(n) for n in (1, 7, 64, 3, 100, 20, 20))
        self.register_buffer("counts", torch.arange(5))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr("ray.wait", lambda refs, timeout: ([], refs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("share", "finds"), [(False, [True]), (True, [True, True]), (True, [False, False]), (True, [False, True, False])]
)
def test_weights_reach_every_engine_whole(loopback: None, share: bool, finds: list[bool], dtype: torch.dtype) -> None:
    model = Model()
    engines = [Engine(f"engine {i}", finds=each) for i, each in enumerate(finds)]
    source = ParameterSource(
        SimpleNamespace(module=model, full_parameters=lambda _: nullcontext()),
        dtype,
        BUCKET,
        keep=True,  # type: ignore
    )
    client: Any = Client(engines)
    sender = GlooSender(source, client, rank=0, host="127.0.0.1", timeout_s=20, bucket_bytes=BUCKET, share=share)
    assert isinstance(sender._memory, SharedMemory if share and any(finds) else TwoBuffers)
    assert [engine.view is not None for engine in engines] == [share and each for each in finds]
    for _ in range(3):
        source.begin()
        sender.send_weights()
        want = {
            name: tensor.to(dtype) if isinstance(tensor, nn.Parameter) else tensor
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        for engine in engines:
            assert engine.weights.keys() == want.keys()
            assert all(torch.equal(engine.weights[name], tensor) for name, tensor in want.items())
            assert {n: bytes_digest(t) for n, t in engine.weights.items()} == source.digests
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1

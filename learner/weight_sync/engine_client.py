"""The calls of vLLM's weight-transfer API to all engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ray import ObjectRef

from maxpo.errors import RemoteError
from maxpo.runtime.ray_calls import wait_for
from maxpo.types import Receiver, WeightsState

T = TypeVar("T")


class EngineClient:
    """Client that calls every engine at once. Has the four methods that vLLM's trainer engines expect of a client."""

    def __init__(self, receivers: Sequence[Receiver], timeout_s: float) -> None:
        """Remember the engines.

        Args:
            receivers: engines in the order of their ranks.
            timeout_s: deadline of every call in seconds.
        """
        self.receivers = receivers
        self.version = -1
        """Version of the weights that are being sent."""
        self.received: dict[str, WeightsState] = {}
        """Version and checksums that each engine has confirmed."""
        self.failure: RemoteError | None = None
        """First error of an engine. vLLM calls this client in a thread whose errors are seen late."""
        self._timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None:
        """Connect every engine with the learner, each with its own ranks in the group."""
        offset = 1
        refs: dict[str, ObjectRef[object]] = {}
        for receiver in self.receivers:
            # vLLM's client has one server of consecutive ranks. Here every engine is a server of its own.
            own = {"rank_offset": offset} if "rank_offset" in init_info else {}
            refs[receiver.name] = receiver.actor.init_weight_transfer.remote({**init_info, **own})
            offset += receiver.workers
        self._wait(refs, "joining the weight-sync group")

    def connect(self, infos: Mapping[str, Mapping[str, object]]) -> None:
        """Connect every engine with the learner, each with the information under its name."""
        refs = {r.name: r.actor.init_weight_transfer.remote(infos[r.name]) for r in self.receivers}
        self._wait(refs, "joining the weight-sync group")

    def sharing(self, path: str, token: bytes) -> list[Receiver]:
        """Return the engines that find the shared memory of that token at that path."""
        found = self._call("finds_memory", "looking for shared memory", path, token)
        return [receiver for receiver in self.receivers if found[receiver.name]]

    def start_weight_update(self) -> None:
        """Pause the engines and make their models ready to receive. Raises at once if one is dead."""
        self.finish_starting(self.begin_starting())

    def begin_starting(self) -> dict[str, ObjectRef[None]]:
        """Have all engines start, and return the pending calls by engine name."""
        return {r.name: r.actor.start_weight_update.remote() for r in self.receivers}

    def finish_starting(self, pending: dict[str, ObjectRef[None]]) -> None:
        """Wait for the calls of `begin_starting`."""
        self._wait(pending, "preparing to receive weights")

    def update_weights(self, update_info: Any) -> None:
        """Have all engines receive, and return when all have loaded everything.

        CUDA IPC handles contain classes, which only pickle can serialize. So they travel as plain data: the size of
        the buffer and the arguments behind the fixed ones (see `IpcReceiver.parse_update_info`).
        """
        if handles := update_info.get("ipc_handles"):
            plain = {gpu: (args[1][0], args[6:]) for gpu, args in handles.items()}
            update_info = update_info | {"ipc_handles": plain}
        self._call("update_weights", "receiving weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update under the version of this sync, resume generation, and keep what the engines confirm."""
        self.received = self._call("finish_weight_update", "finishing the weight update", self.version)

    def begin_receiving(self, update_info: Mapping[str, object]) -> dict[str, ObjectRef[WeightsState]]:
        """Have all engines start to receive and finish by themselves. Return the pending calls by engine name."""
        return {r.name: r.actor.receive_weights.remote(update_info, self.version) for r in self.receivers}

    def finish_receiving(self, pending: dict[str, ObjectRef[WeightsState]]) -> None:
        """Wait for the calls of `begin_receiving`, and keep what the engines confirm."""
        self.received = self._wait(pending, "receiving weights")

    def _call(self, method: str, doing: str, *args: object) -> dict[str, Any]:
        return self._wait({r.name: getattr(r.actor, method).remote(*args) for r in self.receivers}, doing)

    def _wait(self, refs: dict[str, ObjectRef[T]], doing: str) -> dict[str, T]:
        try:
            return wait_for(refs, timeout_s=self._timeout_s, doing=doing)
        except RemoteError as error:
            self.failure = error
            raise

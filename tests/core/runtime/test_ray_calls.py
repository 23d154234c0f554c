"""Waits for remote calls, with a ray that is not started."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from maxpo.errors import RemoteError, RunError
from maxpo.runtime.ray_calls import wait_for
from maxpo.runtime.waits import who_waits


class FakeRay:
    """References are plain values; 'late' never comes, an exception is raised on get."""

    @staticmethod
    def wait(refs: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        ready = [r for r in refs if r != "late"][:1]
        return ready, [r for r in refs if r not in ready]

    @staticmethod
    def get(ref: object) -> object:
        if isinstance(ref, Exception):
            raise ref
        return ref


def use(monkeypatch: pytest.MonkeyPatch, ray: type) -> None:
    """Make `import ray` give another one."""
    monkeypatch.setitem(sys.modules, "ray", ray)  # pyright: ignore[reportArgumentType]


def wait(refs: dict[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
    return wait_for(refs, timeout_s=timeout_s, doing=doing)


def test_waiting_names_who_is_late_and_who_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRay)
    assert wait({"a": 1, "b": 2}, 1, "x") == {"a": 1, "b": 2}
    with pytest.raises(RemoteError, match=r"worker 7 did not finish loading within 0\.5 s"):
        wait({"a": 1, "worker 7": "late"}, 0.5, "loading")
    with pytest.raises(RemoteError, match="rank 1 failed while loading: no memory") as error:
        wait({"rank 1": ValueError("no memory")}, 1, "loading")
    assert isinstance(error.value.__cause__, ValueError)


def test_a_signal_reaches_a_wait_within_a_moment_and_the_wait_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    known: list[str] = []

    class Never:
        @staticmethod
        def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
            limits.append(timeout)
            known.extend(who_waits())
            if len(limits) == 3:
                raise KeyboardInterrupt  # what a handler may do between two calls
            return [], refs

    use(monkeypatch, Never)
    with pytest.raises(KeyboardInterrupt):
        wait({"rank 1": 1, "rank 0": 2}, 1800, "step 7")
    assert limits == [1.0] * 3
    assert known[0] == "for rank 0, rank 1, step 7: 0 s of at most 1800 s"
    assert who_waits() == []


def test_what_a_signal_handler_raises_inside_ray_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        @staticmethod
        def wait(refs: list[Any], num_returns: int, timeout: float) -> None:
            try:
                raise RunError("no progress")
            except RunError as error:  # as Python does it where C code returns a result in spite of an exception
                raise SystemError("CoreWorker.wait returned a result with an exception set") from error

    use(monkeypatch, Interrupted)
    with pytest.raises(RunError, match="no progress"):
        wait({"rank 0": 1}, 5, "step 7")
    assert who_waits() == []

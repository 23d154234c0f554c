"""One piece of work in a thread of its own, with a result and a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Work in a daemon thread. The thread does not keep the process alive, and it cannot be stopped.

    That makes it right for calls that may hang for ever, such as one to a file system, a name server or NCCL.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        """Start the work."""
        self._work = work
        self._future: Future[T] = Future()
        self.seconds = 0.0
        """Duration of the work, once it has ended."""
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def done(self) -> bool:
        """True once the work has ended, with a result or with an error."""
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the end of the work, at most `timeout_s` seconds. Raises nothing."""
        wait([self._future], timeout_s)

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the result of the work, at most `timeout_s` seconds.

        Raises:
            TimeoutError: the deadline passed; the thread is left behind.
            BaseException: whatever the work raised.
        """
        self.wait(timeout_s)
        if not self.done:
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return self._future.result()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            result = self._work()
        except BaseException as error:
            self.seconds = time.perf_counter() - started
            self._future.set_exception(error)
        else:
            self.seconds = time.perf_counter() - started
            self._future.set_result(result)

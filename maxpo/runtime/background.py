"""One piece of work beside the main thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Background:
    """Work in a daemon thread, which ends with the process; its error comes out of `result`."""

    def __init__(self, work: Callable[[], None]) -> None:
        """Start the work."""
        self._work = work
        self._error: BaseException | None = None
        self.seconds = 0.0
        """How long it took, once it is done."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the end, well or not, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)

    def result(self) -> None:
        """Wait for the end, and raise what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._work()
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - started

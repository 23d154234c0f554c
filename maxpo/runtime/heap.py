"""Pauses of Python's garbage collector."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Leave all objects that exist now out of later garbage collections.

    Call it once, when a process has started. Its libraries make hundreds of thousands of objects that live as long as
    the process. Each full collection looks at all of them, which takes up to half a second in the middle of a step.
    """
    gc.collect()
    gc.freeze()

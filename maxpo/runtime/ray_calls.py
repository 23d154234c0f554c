"""Remote calls with a deadline and with names. The only file of the core that imports ray, and only when it is used."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from maxpo.errors import LateError, RemoteError
from maxpo.runtime.waits import SIGNAL_S, waiting


def failure(name: str, doing: str, error: Exception) -> RemoteError:
    """The error of a remote call, with the worker's name and, where ray wrapped it, the worker's own exception."""
    return RemoteError(f"{name} failed while {doing}: {getattr(error, 'cause', None) or error}")


def actor_is_lost(error: BaseException | None) -> bool:
    """Whether a remote call failed because its actor's process is gone; Ray has an error of its own for one that it
    killed because the node ran out of memory.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    return isinstance(error, (RayActorError, OutOfMemoryError, NodeDiedError))


def told(cause: BaseException, log_folder: Path | None, pid: int | None) -> str:
    """What is said of the death of a worker: the cause, cut short, and where the worker's output will be."""
    log = f"worker-*-{pid or '*'}.*"
    where = log_folder / log if log_folder else f"{log} in Ray's logs on its node"
    return f"{textwrap.shorten(str(cause), 400)} (its output: {where})"


def ready_of(refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
    """`ray.wait`; what a signal handler raises meanwhile comes out as it is, where Ray makes a SystemError of it."""
    import ray

    try:
        return cast(Any, ray).wait(refs, **options)  # its stub leaves types open
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def wait_for(refs: Mapping[str, Any], *, timeout_s: float, doing: str) -> dict[str, Any]:
    """The results of remote calls by worker name, as soon as all are there or one has failed.

    Args:
        refs: worker name -> object reference.
        timeout_s: seconds for all of them together.
        doing: what the workers do, for the message: "<name> did not finish <doing> within ...".

    Raises:
        RemoteError: a call raised or its worker died (the cause is chained).
        LateError: the deadline passed.
    """
    import ray

    deadline = time.monotonic() + timeout_s
    names = {ref: name for name, ref in refs.items()}
    pending = list(refs.values())
    results: dict[str, Any] = {}
    with waiting(doing, lambda: [names[ref] for ref in pending], timeout_s):
        while pending:
            left = deadline - time.monotonic()
            ready, pending = ready_of(pending, timeout=max(0.0, min(left, SIGNAL_S)))
            for ref in ready:
                try:
                    results[names[ref]] = ray.get(ref)
                except Exception as error:
                    raise failure(names[ref], doing, error) from error
            if pending and not ready and left <= SIGNAL_S:
                missing = ", ".join(sorted(names[ref] for ref in pending))
                raise LateError(f"{missing} did not finish {doing} within {timeout_s:g} s")
    return {name: results[name] for name in refs}

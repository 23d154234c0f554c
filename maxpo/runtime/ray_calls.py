"""Waiting for remote calls with a deadline and with names."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxpo.errors import LateError, RemoteError
from maxpo.runtime.waits import SIGNAL_S, waiting


def failure(name: str, doing: str, error: Exception) -> RemoteError:
    """The error of a remote call, with the worker's name and, where ray wrapped it, the worker's own exception."""
    return RemoteError(f"{name} failed while {doing}: {getattr(error, 'cause', None) or error}")


def actor_is_lost(error: BaseException | None, exceptions: Any) -> bool:
    """Whether a remote call failed because its actor's process is gone; Ray has an error of its own for one that it
    killed because the node ran out of memory.

    Args:
        error: of the call.
        exceptions: the module ray.exceptions; passed in, so that the core does not import it.
    """
    return isinstance(error, (exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.NodeDiedError))


def told(cause: BaseException, log_folder: Path | None, pid: int | None) -> str:
    """What is said of the death of a worker: the cause, cut short, and where the worker's output will be."""
    log = f"worker-*-{pid or '*'}.*"
    where = log_folder / log if log_folder else f"{log} in Ray's logs on its node"
    return f"{textwrap.shorten(str(cause), 400)} (its output: {where})"


def ready_of(ray: Any, refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
    """`ray.wait`; what a signal handler raises meanwhile comes out as it is, where Ray makes a SystemError of it."""
    try:
        return ray.wait(refs, **options)
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def wait_for(refs: Mapping[str, Any], *, timeout_s: float, doing: str, ray: Any) -> dict[str, Any]:
    """The results of remote calls by worker name, as soon as all are there or one has failed.

    Args:
        refs: worker name -> object reference.
        timeout_s: seconds for all of them together.
        doing: what the workers do, for the message: "<name> did not finish <doing> within ...".
        ray: the ray module; passed in, so that the core does not import it.

    Raises:
        RemoteError: a call raised or its worker died (the cause is chained).
        LateError: the deadline passed.
    """
    deadline = time.monotonic() + timeout_s
    names = {ref: name for name, ref in refs.items()}
    pending = list(refs.values())
    results: dict[str, Any] = {}
    with waiting(doing, lambda: [names[ref] for ref in pending], timeout_s):
        while pending:
            left = deadline - time.monotonic()
            ready, pending = ready_of(ray, pending, timeout=max(0.0, min(left, SIGNAL_S)))
            for ref in ready:
                try:
                    results[names[ref]] = ray.get(ref)
                except Exception as error:
                    raise failure(names[ref], doing, error) from error
            if pending and not ready and left <= SIGNAL_S:
                missing = ", ".join(sorted(names[ref] for ref in pending))
                raise LateError(f"{missing} did not finish {doing} within {timeout_s:g} s")
    return {name: results[name] for name in refs}

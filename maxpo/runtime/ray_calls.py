"""Remote calls with a deadline and with names. The only file of the core that imports ray, and only when it is used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from maxpo.errors import LateError, RemoteError
from maxpo.runtime.waits import SIGNAL_S, waiting
from maxpo.wording import plain, reason

if TYPE_CHECKING:
    from ray import ObjectRef

R = TypeVar("R")


class RemoteMethod(Protocol[R]):
    """A method of an actor handle."""

    def remote(self, *args: object, **kwargs: object) -> ObjectRef[R]:
        """Call the method without waiting for its result."""
        ...


def failure(name: str, doing: str, error: Exception) -> RemoteError:
    """Return the error of a remote call, with the worker's name and, if ray wrapped one, the worker's own exception."""
    cause = getattr(error, "cause", None)
    return RemoteError(f"{name} failed while {doing}: {plain(str(cause)) if cause else reason(str(error))}")


def actor_is_lost(error: BaseException | None) -> bool:
    """Return True if a remote call failed because the process of its actor is gone.

    Ray has an error of its own for a process that Ray killed because the node ran out of memory.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    return isinstance(error, (RayActorError, OutOfMemoryError, NodeDiedError))


def told(cause: BaseException, output: Path | None, pid: int | None) -> str:
    """Return the text about the death of a worker: the cause in one line, and the path of the worker's output."""
    where = output or f"worker-*-{pid or '*'}.* in Ray's logs on its node"
    return f"{reason(str(getattr(cause, 'cause', None) or cause))} (its output: {where})"


def ready_of(
    refs: Sequence[ObjectRef[R]], *, num_returns: int = 1, timeout: float | None = None
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Call `ray.wait` and return the references that are ready and the others.

    Ray makes a SystemError of what a signal handler raises meanwhile. Here the handler's own exception is raised.
    """
    import ray

    try:
        return ray.wait(list(refs), num_returns=num_returns, timeout=timeout)  # pyright: ignore
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def wait_for(
    refs: Mapping[str, ObjectRef[R]], *, timeout_s: float, doing: str, since: float | None = None
) -> dict[str, R]:
    """Return the results of remote calls by worker name, once all are there. Raise as soon as one has failed.

    Args:
        refs: worker name -> object reference.
        timeout_s: seconds for all of them together.
        doing: activity of the workers, for the message "<name> did not finish <doing> within ...".
        since: time of the calls, on the clock of `time.monotonic`. None: now.

    Raises:
        RemoteError: a call raised or its worker died (the cause is chained).
        LateError: the deadline passed.
    """
    import ray

    deadline = (time.monotonic() if since is None else since) + timeout_s
    names = {ref: name for name, ref in refs.items()}
    pending = list(refs.values())
    results: dict[str, R] = {}
    with waiting(doing, lambda: [names[ref] for ref in pending], timeout_s):
        while pending:
            left = deadline - time.monotonic()
            # In short pieces, because no signal reaches this process inside `ray.wait`.
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

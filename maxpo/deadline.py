"""Waiting for remote calls with a deadline and with names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from maxpo.errors import RunError


class RemoteError(RunError):
    """A remote worker failed or did not answer in time; the message names it."""


def failure(name: str, doing: str, error: Exception) -> RemoteError:
    """The error of a remote call, with the worker's name and, where ray wrapped it, the worker's own exception."""
    return RemoteError(f"{name} failed while {doing}: {getattr(error, 'cause', None) or error}")


def wait_for(refs: Mapping[str, Any], *, timeout_s: float, doing: str, ray: Any) -> dict[str, Any]:
    """The results of remote calls by worker name, as soon as all are there or one has failed.

    Args:
        refs: worker name -> object reference.
        timeout_s: seconds for all of them together.
        doing: what the workers do, for the message: "<name> did not finish <doing> within ...".
        ray: the ray module; passed in, so that the core does not import it.

    Raises:
        RemoteError: a call raised or its worker died (the cause is chained), or the deadline passed.
    """
    deadline = time.monotonic() + timeout_s
    names = {ref: name for name, ref in refs.items()}
    pending = list(refs.values())
    results: dict[str, Any] = {}
    while pending:
        ready, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        for ref in ready:
            try:
                results[names[ref]] = ray.get(ref)
            except Exception as error:
                raise failure(names[ref], doing, error) from error
        if pending and not ready:
            missing = ", ".join(sorted(names[ref] for ref in pending))
            raise RemoteError(f"{missing} did not finish {doing} within {timeout_s:g} s")
    return {name: results[name] for name in refs}

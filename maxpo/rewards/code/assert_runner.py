"""The tests' side of a program that is tested by asserts. Runs inside a separate sandbox.

Tests and program share nothing but a pipe for plain data. Values of the program have no methods of the program here.
Whatever the program prints, patches or exits with, it cannot report that a test has passed.
"""

from __future__ import annotations

import builtins
import functools
import json

from maxpo.rewards.code.wire import OUTPUT_BYTES, UnsupportedError, decode, encode, frame, write

TYPE_CHECKING = False  # as in `wire`
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class _Program:
    """The program, at the other ends of descriptors 3 (calls) and 4 (values)."""

    def __init__(self) -> None:
        self._values = open(4, "rb")  # noqa: SIM115
        self.called = False
        """True after the first call."""
        self.missing = False
        """True if the program has ended or lacks a function that a test called, even if the test caught the error."""

    def ask(self, name: str | None, *args: object, **kwargs: object) -> object:
        """Return the result of a function. Without a name, return the names that the program defines."""
        request = [name, encode(args, strict=True), encode(kwargs, strict=True)]
        self.called |= name is not None
        write(3, json.dumps(request).encode() + b"\n")
        line = self._values.readline(OUTPUT_BYTES)
        if not line.endswith(b"\n"):
            self.missing = True
            raise RuntimeError("the program has ended")
        kind, answer = json.loads(line)
        if kind == "value":
            return decode(answer)
        self.missing |= kind == "missing"
        error: object = getattr(builtins, str(answer), None)
        raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError(answer)

    def function(self, name: str) -> object:
        """Return a function that calls the program's function of that name."""
        return functools.partial(self.ask, name)

    @functools.cached_property
    def defined(self) -> list[str]:
        """The names that the program defines. Empty if it does not run at all."""
        try:
            names: Any = self.ask(None)
            return [*names]
        except Exception:
            return []

    def tested(self, names: Sequence[str]) -> dict[str, object]:
        """Return functions under test: all of the names, or of several those that the program defines."""
        mine = [name for name in names if name in self.defined] if len(names) > 1 else names
        return {name: self.function(name) for name in mine or names}


def _run(test: Any, names: dict[str, Any], candidate: object) -> str:
    """Run one test, and return its status."""
    try:
        exec(test, names)
        if candidate is not None and callable(check := names.pop("check", None)):
            check(candidate)  # HumanEval defines `check(candidate)` and does not call it
    except AssertionError:
        return "wrong"
    except UnsupportedError:
        raise
    except ModuleNotFoundError as error:
        if error.name:  # an error of the program comes without its details
            raise UnsupportedError(f"the tests import {error.name}, which the sandbox does not have") from error
        return "error"
    except Exception:
        return "error"
    return "ok"


def run_asserts(job: Mapping[str, Any], out: int) -> int:
    """Run the tests, and write a frame per test to `out`. A test passes only if the program has all that it calls."""
    program = _Program()
    names: dict[str, Any] = {"__name__": "tests"} | {name: program.function(name) for name in job["free"]}
    failed = False
    try:
        try:
            exec(compile(job["setup"], "setup", "exec", dont_inherit=True), names)
        except Exception as error:
            if isinstance(error, UnsupportedError) or not program.called:
                raise
            failed = True  # the fault of the program
        tests = [compile(text, "test", "exec", dont_inherit=True) for text in job["tests"]]
    except Exception as error:
        frame(out, "unsupported", f"the tests cannot be used: {type(error).__name__}: {error}".encode())
        return 0
    candidate = program.function(job["candidate"]) if job["candidate"] else None
    for number, (test, tested) in enumerate(zip(tests, job["tested"], strict=False), 1):
        before = {name: names[name] for name in tested if name in names}
        names |= program.tested(tested)
        program.missing = False
        try:
            status = _run(test, names, candidate)
        except UnsupportedError as error:
            if len(tested) < 2:
                frame(out, "unsupported", str(error).encode())
                continue
            status = "error"  # the program has replaced the wrong function
        if failed or program.missing:
            status = "error"
        elif status == "ok" and number == len(tests) and not program.called:
            status = "wrong"  # tests that never call the program say nothing about it
        frame(out, status)
        for name in tested:
            names.pop(name, None)
        names |= before
    return 0

"""Runs inside the sandbox: the standard library only, with two modules beside it, and nothing that is secret.

It reads a job from file descriptor 0 and answers with frames on descriptor 1: a line `status length`, then as many
bytes. The program under judgement runs in forked children only, one per case, with the limits and the seccomp filter.
Whatever a program does to this process, it can gain no more than a frame with an output of its choice, and outputs are
compared outside.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import json
import math
import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NoReturn, cast

from maxpo.rewards.code.assert_runner import judge
from maxpo.rewards.code.wire import OUTPUT_BYTES, decode, encode, frame, write

FILE_BYTES = 32 << 20
"""Largest file."""
STACK_BYTES = 64 << 20
OPEN_FILES = 64
NOBODY = 65534
"""The user who runs programs."""
PROCESSES = 64
"""Threads and processes in the sandbox at a time, its own included."""
PRELUDE = """
import bisect, collections, functools, heapq, itertools, math, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
del pow
"""
"""What functions that are called from outside find imported, as is usual for such data sets."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 1, 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def _prctl(*arguments: Any) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, *[0] * (5 - len(arguments)))]
    if ctypes.CDLL(None, use_errno=True).prctl(*words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({arguments[0]})")


def _die_with(parent: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had died before
        os._exit(1)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    ceiling = resource.getrlimit(kind)[1]  # a limit that is lower already stays
    wanted = (soft, soft if hard is None else hard)
    resource.setrlimit(kind, wanted if ceiling < 0 else (min(soft, ceiling), min(wanted[1], ceiling)))


def _fork(job: dict[str, Any], seconds: float, inside: Callable[[], int], fds: dict[int, int]) -> int:
    """A child with limits, filter and only the descriptors `fds` (own number -> that of here); its process id.

    What is missing of 0, 1 and 2 is /dev/null.
    """
    driver = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if job["unsafe"]:
            _die_with(driver)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        # Copies that lie above all wanted numbers, so that none is overwritten before it has its place.
        kept = {own: fcntl.fcntl(fds.get(own, null), fcntl.F_DUPFD, OPEN_FILES // 2) for own in {0, 1, 2, *fds}}
        for own, there in kept.items():
            os.dup2(there, own)
        os.closerange(max(kept) + 1, 1 << 20)
        cpu = math.ceil(seconds)
        _limit(resource.RLIMIT_CPU, cpu, cpu + 1)
        _limit(resource.RLIMIT_AS, job["memory_bytes"])
        steps = bytes.fromhex(job["seccomp"])
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(steps) // 8, steps)))
        code = inside()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        code = 1
        os.write(2, repr(error).encode(errors="replace")[:500])
    try:
        threads = cast("Any", sys.modules.get("threading"))
        if threads is not None:
            threads._shutdown()  # waits for threads, as at the end of any program
        atexit: Any = __import__("atexit")
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        code = code or 1
    os._exit(code & 255)


def _program(job: dict[str, Any], names: dict[str, Any], name: str = "solution") -> dict[str, Any]:
    """Runs the program's top level as the module `name`; its names."""
    module = types.ModuleType(name)
    module.__dict__.update(names)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    exec(compile(job["code"], "solution.py", "exec"), module.__dict__)
    return module.__dict__


def _function(names: dict[str, Any], name: str) -> Any:
    """The program's function, or the method of its class `Solution`."""
    return names[name] if name in names or "Solution" not in names else getattr(names["Solution"](), name)


def _watch(pid: int, out: int, seconds: float) -> tuple[str, bytes]:
    """How a child ends, and what it wrote to `out`."""
    deadline = time.monotonic() + seconds
    data, status, ended, closed = bytearray(), "", os.pidfd_open(pid), False
    while not status:
        left = deadline - time.monotonic()
        ready = select.select([ended] if closed else [ended, out], [], [], max(left, 0))[0]
        if out in ready:
            chunk = os.read(out, 1 << 16)
            data += chunk
            closed = not chunk
            if len(data) > OUTPUT_BYTES:
                status = "output"
        elif ended in ready:
            status = "ended"
        if left <= 0 and not status:
            status = "timeout"
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(ended)
    if status == "ended":
        status = "timeout" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "error" if code else "ok"
    return status, bytes(data) if status == "ok" else b""


def _case(job: dict[str, Any], case: Any, names: dict[str, Any]) -> tuple[str, bytes]:
    """One case: its standard input, or the arguments of the function."""
    out, write_end = os.pipe()
    if "function" in job:

        def inside() -> int:
            value = _function(_program(job, names), job["function"])(*decode(case))
            write(3, json.dumps(encode(value)).encode())
            return 0

        fds = {3: write_end}
    else:

        def inside() -> int:
            _program(job, {}, "__main__")
            return 0

        for left in os.listdir("."):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.unlink(left)  # noqa: PTH108
        # /dev/stdin leads to this file. It is new: what lies there may be anything that an earlier case has made.
        file = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        write(file, case.encode("utf-8", "surrogateescape"))
        os.lseek(file, 0, os.SEEK_SET)
        fds = {0: file, 1: write_end}
    pid = _fork(job, job["case_s"], inside, fds)
    for fd in fds.values():
        os.close(fd)
    status, data = _watch(pid, out, job["case_s"])
    os.close(out)
    return status, data


def _serve(job: dict[str, Any], names: dict[str, Any]) -> int:
    """The program's side of tests: calls come in on 3, values go out on 4."""
    found: dict[str, Any] | None = None
    with open(3, "rb") as calls, open(4, "wb", buffering=0) as values:
        for line in calls:
            try:
                if found is None:
                    found = _program(job, names)
                name, args, kwargs = json.loads(line)
                answer = ["value", encode(_function(found, name)(*decode(args), **decode(kwargs)))]
            except Exception as error:
                answer = ["error", type(error).__name__]
            values.write(json.dumps(answer).encode() + b"\n")
    return 0


def main() -> NoReturn:
    """Read the job, try whether a child can be made and confined, then run the cases."""
    with open(0, "rb", closefd=False) as file:
        job = json.loads(file.read())
    out = os.dup(1)
    if job["unsafe"]:
        _die_with(job["parent"])
        os.chdir(job["folder"])
    else:
        if job["root"]:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _limit(resource.RLIMIT_NPROC, PROCESSES)  # within this user namespace
    for kind, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _limit(kind, amount)
    builtins.exit = builtins.quit = sys.exit  # made by the module site, which is not loaded
    names: dict[str, Any] = {}
    if job["kind"] in ("call", "serve"):
        exec(PRELUDE, names)
    _, status = os.waitpid(_fork(job, job["case_s"], lambda: 0, {2: 2}), 0)
    if status:
        frame(out, "broken", f"a child cannot be confined: status {status}".encode())
        os._exit(1)
    frame(out, "ready")
    if job["kind"] in ("call", "stdin"):
        for case in job["cases"]:
            try:
                status, data = _case(job, case, names)
            except OSError:  # the program left things behind that make the next case impossible
                status, data = "error", b""
            frame(out, status, data)
            if status == "timeout":
                break
    else:
        seconds = job["case_s"] * job["count"]
        serves = job["kind"] == "serve"
        fds = {3: job["reads" if serves else "writes"], 4: job["writes" if serves else "reads"]}
        if serves:
            pid = _fork(job, seconds, lambda: _serve(job, names), fds)
        else:
            pid = _fork(job, seconds, lambda: judge(job, 5), {**fds, 5: out})
        for fd in fds.values():
            os.close(fd)
        os.waitpid(pid, 0)
    os._exit(0)

"""The main program of a sandbox: the standard library, two modules beside this one, and no secrets.

Reads a job from file descriptor 0 and answers with frames on descriptor 1: a line `status length`, then `length`
bytes. The tested program runs in forked children only, one per case, with the limits and the seccomp filter. A program
that takes over this process can gain no more than a frame with an output of its choice, and outputs are compared
outside.
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
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from maxpo.rewards.code.assert_runner import run_asserts
from maxpo.rewards.code.wire import OUTPUT_BYTES, decode, encode, frame, write

FILE_BYTES = 32 << 20
"""Size of the largest file."""
STACK_BYTES = 64 << 20
OPEN_FILES = 64
NOBODY = 65534
"""Id of the user that runs programs."""
PROCESSES = 64
"""Most threads and processes in the sandbox at a time, including its own."""
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
"""Imports for functions that are called from outside. Data sets with such functions expect them."""

Job = Mapping[str, Any]
"""A job of `maxpo.rewards.code.sandbox.Sandbox`, as JSON."""
Names = dict[str, Any]
"""Global names of a program."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 1, 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def _prctl(*arguments: object) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, *[0] * (5 - len(arguments)))]
    if ctypes.CDLL(None, use_errno=True).prctl(*words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({arguments[0]})")


def _die_with(parent: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent had died before the call
        os._exit(1)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    ceiling = resource.getrlimit(kind)[1]  # a lower limit stays
    wanted = (soft, soft if hard is None else hard)
    resource.setrlimit(kind, wanted if ceiling < 0 else (min(soft, ceiling), min(wanted[1], ceiling)))


def _fork(job: Job, seconds: float, inside: Callable[[], int], fds: dict[int, int]) -> int:
    """Fork a child that runs `inside` with limits, filter and the given descriptors. Returns the process id.

    Args:
        job: The job.
        seconds: CPU time of the child.
        inside: Function for the child, which returns the exit code.
        fds: Number in the child -> number here. Missing ones of 0, 1 and 2 are /dev/null.
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
        _keep_only(fds)
        _confine(job, math.ceil(seconds))
        code = inside()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        code = 1
        os.write(2, repr(error).encode(errors="replace")[:500])
    try:
        _finish_program()
    except BaseException:
        code = code or 1
    os._exit(code & 255)


def _keep_only(fds: Mapping[int, int]) -> None:
    """Give the descriptors their numbers in the child, and close all others."""
    null = os.open("/dev/null", os.O_RDWR)
    # Copies above all final numbers, so that no descriptor is overwritten before it is copied.
    copies = {own: fcntl.fcntl(fds.get(own, null), fcntl.F_DUPFD, OPEN_FILES // 2) for own in {0, 1, 2, *fds}}
    for own, copy in copies.items():
        os.dup2(copy, own)
    os.closerange(max(copies) + 1, 1 << 20)


def _confine(job: Job, cpu_s: int) -> None:
    """Set the limits and the seccomp filter of a child."""
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    _limit(resource.RLIMIT_AS, job["memory_bytes"])
    steps = bytes.fromhex(job["seccomp"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(steps) // 8, steps)))


def _finish_program() -> None:
    """Wait for threads, run exit handlers and flush output, as at the end of any program."""
    threads: Any = sys.modules.get("threading")
    if threads is not None:
        threads._shutdown()
    atexit: Any = __import__("atexit")
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()


def _program(job: Job, names: Names, name: str = "solution") -> Names:
    """Run the program's top level as the module `name`, and return its names."""
    module = types.ModuleType(name)
    module.__dict__.update(names)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    exec(compile(job["code"], "solution.py", "exec"), module.__dict__)
    return module.__dict__


def _function(names: Names, name: str) -> Any:
    """Return the program's function, or the method of its class `Solution`."""
    return names[name] if name in names or "Solution" not in names else getattr(names["Solution"](), name)


def _watch(pid: int, out: int, seconds: float) -> tuple[str, bytes]:
    """Wait for a child, and return its status and its output on `out`."""
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


def _case(job: Job, case: Any, names: Names) -> tuple[str, bytes]:
    """Run one case, given its standard input or the arguments of the function. Returns status and output."""
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
        # /dev/stdin leads to this file. It must be new, because an earlier case may have made anything of that name.
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


def _serve(job: Job, names: Names) -> int:
    """Run the program's side of tests: calls come in on 3, values go out on 4."""
    program: Names | None = None
    with open(3, "rb") as calls, open(4, "wb", buffering=0) as values:
        for line in calls:
            try:
                if program is None:
                    program = _program(job, names)
                name, args, kwargs = json.loads(line)
                answer = ["value", encode(_function(program, name)(*decode(args), **decode(kwargs)))]
            except Exception as error:
                answer = ["error", type(error).__name__]
            values.write(json.dumps(answer).encode() + b"\n")
    return 0


def _isolate(job: Job) -> None:
    """Become nobody, and set the limits of this process and of its children."""
    if job["unsafe"]:
        _die_with(job["parent"])
        os.chdir(job["folder"])
    else:
        if job["root"]:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        _limit(resource.RLIMIT_NPROC, PROCESSES)  # counts within this user namespace
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)


def _run_cases(job: Job, names: Names, out: int) -> None:
    """Run the cases one by one, and write a frame for each to `out`. Stops after a timeout."""
    for case in job["cases"]:
        try:
            status, data = _case(job, case, names)
        except OSError:  # an earlier case left files that make this one impossible
            status, data = "error", b""
        frame(out, status, data)
        if status == "timeout":
            break


def _run_side(job: Job, names: Names, out: int) -> None:
    """Run one side of a program that is tested by asserts: the program ("serve") or the tests ("asserts")."""
    seconds = job["case_s"] * job["count"]
    serves = job["kind"] == "serve"
    fds = {3: job["reads" if serves else "writes"], 4: job["writes" if serves else "reads"]}
    if serves:
        pid = _fork(job, seconds, lambda: _serve(job, names), fds)
    else:
        pid = _fork(job, seconds, lambda: run_asserts(job, 5), {**fds, 5: out})
    for fd in fds.values():
        os.close(fd)
    os.waitpid(pid, 0)


def main() -> NoReturn:
    """Read the job, check that a child can be made and confined, then run the cases."""
    with open(0, "rb", closefd=False) as file:
        job: Job = json.loads(file.read())
    out = os.dup(1)
    _isolate(job)
    builtins.exit = builtins.quit = sys.exit  # made by the module site, which is not loaded
    names: Names = {}
    if job["kind"] in ("call", "serve"):
        exec(PRELUDE, names)
    _, status = os.waitpid(_fork(job, job["case_s"], lambda: 0, {2: 2}), 0)
    if status:
        frame(out, "broken", f"a child cannot be confined: status {status}".encode())
        os._exit(1)
    frame(out, "ready")
    if job["kind"] in ("call", "stdin"):
        _run_cases(job, names, out)
    else:
        _run_side(job, names, out)
    os._exit(0)

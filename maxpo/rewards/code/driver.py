"""The main program of a sandbox: the standard library, one or two modules beside this one, and no secrets.

Answers with frames on descriptor 1: a line `status length`, then `length` bytes. The tested program runs in forked
children only, one per case, with the limits and the seccomp filter. A program that takes over this process can gain no
more than a frame with an output of its choice, and outputs are compared outside.

The driver is the first process of the sandbox: the kernel kills all others when it ends, and signals from inside do not
reach it. It imports as little as possible, because half of the time of a short program is the start of Python.
"""

from __future__ import annotations

import builtins
import ctypes
import fcntl
import math
import os
import resource
import select
import sys
import time

from maxpo.rewards.code.wire import OUTPUT_BYTES, decode, encode, frame, write

TYPE_CHECKING = False  # `typing` and `collections.abc` are imported only if the program needs them
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    Job = Mapping[str, Any]  # of `maxpo.rewards.code.sandbox.Sandbox`
    Names = dict[str, Any]  # global names of a program

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
"""
"""Imports for functions that are called from outside. Data sets with such functions expect them."""

_SIGINT, _SIGKILL, _SIGPIPE, _SIGXCPU = (
    2,
    9,
    13,
    24,
)  # the module `signal` takes a third of the time in which a sandbox starts
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 1, 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def _prctl(*arguments: object) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, *[0] * (5 - len(arguments)))]
    if _LIBC.prctl(*words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({arguments[0]})")


def _die_with(parent: int, out: int | None = None) -> None:
    """End with the parent. Without its process id, which is unknown in a sandbox, `out` tells that it has died."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    closed = select.poll()
    if out is not None:
        closed.register(out, 0)
    if (out is None and os.getppid() != parent) or closed.poll(0):  # the parent had died before the call
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
        _LIBC.signal(_SIGPIPE, None)  # SIG_DFL
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
    steps = job["seccomp"]
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


def _program(job: Job, name: str) -> Names:
    """Run the program's top level as the module `name`, and return its names. Nothing of the driver is in them."""
    module = type(sys)(name)
    module.__dict__["__builtins__"] = builtins
    for own in [own for own in sys.modules if own.startswith("maxpo.")]:
        del sys.modules[own]
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    exec(compile(job["code"], "solution.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _function(names: Names, name: str) -> Any:
    """Return the program's function, or the method of its class `Solution`."""
    return names[name] if name in names or "Solution" not in names else getattr(names["Solution"](), name)


def _prelude() -> None:
    """Import `PRELUDE` as builtins, so that the names of a program are those that it defines itself."""
    names: Names = {}
    exec(PRELUDE, names)
    for name in names.keys() - vars(builtins).keys() - {"__builtins__"}:
        setattr(builtins, name, names[name])


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
    os.kill(pid, _SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(ended)
    if status == "ended":
        status = "timeout" if code in (-_SIGXCPU, -_SIGKILL) else "error" if code else "ok"
    return status, bytes(data) if status == "ok" else b""


def _case(job: Job, case: Any) -> tuple[str, bytes]:
    """Run one case, given its standard input or the arguments of the function. Returns status and output."""
    out, write_end = os.pipe()
    if "function" in job:

        def inside() -> int:
            value = _function(_program(job, "solution"), job["function"])(*decode(case))
            import json

            write(3, json.dumps(encode(value)).encode())
            return 0

        fds = {3: write_end}
    else:

        def inside() -> int:
            _program(job, "__main__")
            return 0

        for left in os.listdir("."):  # noqa: PTH208
            try:  # noqa: SIM105
                os.unlink(left)  # noqa: PTH108
            except OSError:
                pass
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


def _serve(job: Job) -> int:
    """Run the program's side of tests: calls come in on 3, values go out on 4."""
    import json

    program: Names | None = None
    with open(3, "rb") as calls, open(4, "wb", buffering=0) as values:
        for line in calls:
            try:
                if program is None:
                    program = _program(job, "solution")
                answer = _answer(program, *json.loads(line))
            except Exception as error:
                answer = ["missing", type(error).__name__]
            values.write(json.dumps(answer).encode() + b"\n")
    return 0


def _answer(program: Names, name: str | None, args: Any, kwargs: Any) -> list[Any]:
    """Call a function of the program. Without a name, return the names that the program defines."""
    if name is None:
        return ["value", encode([*program, *dir(program.get("Solution"))])]
    function = _function(program, name)
    try:
        return ["value", encode(function(*decode(args), **decode(kwargs)))]
    except Exception as error:
        return ["error", type(error).__name__]


def _isolate(job: Job, out: int) -> None:
    """Become nobody, and set the limits of this process and of its children."""
    if job["unsafe"]:
        _die_with(job["parent"])
        os.chdir(job["folder"])
    else:
        if job["root"]:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            _die_with(0, out)  # again, because a change of the user switches it off
        _limit(resource.RLIMIT_NPROC, PROCESSES)  # counts within this user namespace
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_SIGPENDING, PROCESSES)  # timers, too, which take memory of the kernel
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)


def _run_cases(job: Job, out: int) -> None:
    """Run the cases one by one, and write a frame for each to `out`. Stops after a timeout."""
    for case in job["cases"]:
        try:
            status, data = _case(job, case)
        except OSError:  # an earlier case left files that make this one impossible
            status, data = "error", b""
        frame(out, status, data)
        if status == "timeout":
            break


def _run_side(job: Job, out: int) -> None:
    """Run one side of a program that is tested by asserts: the program ("serve") or the tests ("asserts")."""
    seconds = job["case_s"] * job["count"]
    serves = job["kind"] == "serve"
    fds = {3: job["reads" if serves else "writes"], 4: job["writes" if serves else "reads"]}
    if serves:
        pid = _fork(job, seconds, lambda: _serve(job), fds)
    else:
        from maxpo.rewards.code.assert_runner import run_asserts

        pid = _fork(job, seconds, lambda: run_asserts(job, 5), {**fds, 5: out})
    for fd in fds.values():
        os.close(fd)
    os.waitpid(pid, 0)


def main(job: Job) -> NoReturn:
    """Check that a child can be made and confined, then run the cases of a job."""
    out = os.dup(1)
    _LIBC.signal(_SIGINT, None)  # SIG_DFL, so that the kernel keeps it from the first process, like other signals
    _isolate(job, out)
    builtins.exit = builtins.quit = sys.exit  # made by the module site, which is not loaded
    if job["kind"] in ("call", "serve"):
        _prelude()
        __import__("json")  # before the children need it
    _, status = os.waitpid(_fork(job, job["case_s"], lambda: 0, {2: 2}), 0)
    if status:
        frame(out, "broken", f"a child cannot be confined: status {status}".encode())
        os._exit(1)
    frame(out, "ready")
    if job["kind"] in ("call", "stdin"):
        _run_cases(job, out)
    else:
        _run_side(job, out)
    os._exit(0)

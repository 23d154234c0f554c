"""A bubblewrap sandbox for untrusted programs, which starts `driver.py` and reads its frames."""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from maxpo.config import RewardConfig
from maxpo.rewards.code.driver import NOBODY
from maxpo.rewards.code.seccomp import filter_program
from maxpo.rewards.code.wire import OUTPUT_BYTES

START_S = 10.0
"""Seconds until a sandbox must be ready."""
GRACE_S = 1.0
"""Seconds beyond the time limit of a case after which the sandbox is killed from outside."""
FOLDER_BYTES = 64 << 20
"""Size of the program's work folder in bytes. The folder lies in memory."""
_HEADER_BYTES = 64
# The code of these modules goes to the driver with its job, so the driver needs no access to files of this machine.
_MODULES = ("wire", "driver")
_TESTS_MODULES = ("wire", "assert_runner", "driver")
_BOOTSTRAP = """
import marshal, sys
with open(0, "rb", closefd=False) as file:
    parts, job = marshal.load(file)
for name, code in parts:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(job)
"""
_PYTHON_OPTIONS = ("-S", "-s", "-P", "-B", "-X", "utf8")
# A fixed hash seed gives sets a stable order. One arena keeps threads from reserving 64 MiB each of the memory limit.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class SandboxError(RuntimeError):
    """A sandbox that could not be started. The program has not been run."""


class CaseError(Exception):
    """A case that did not finish. `args[0]` is timeout, error or output."""


@functools.cache
def _code(*modules: str) -> list[tuple[str, CodeType]]:
    """Return names and code of modules. They are compiled here, once, and not in each sandbox."""
    folder = Path(__file__).parent
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in modules}
    return [(f"{__package__}.{name}", compile(text, name, "exec", dont_inherit=True)) for name, text in texts.items()]


def worst_s(config: RewardConfig) -> float:
    """Return the maximum number of seconds that one answer can take."""
    return START_S + config.code_max_cases * config.code_case_s + 2 * GRACE_S


def runtime_paths() -> list[str]:
    """Return the paths of this machine that the sandbox shows: the interpreter, its library and system libraries."""
    wanted = [os.path.realpath(sys.executable)]
    wanted += [f"{base}/{name}" for base in ("", "/usr", sys.base_prefix) for name in ("lib", "lib64")]
    return list(dict.fromkeys(path for path in wanted if os.path.lexists(path)))


@functools.cache
def bwrap_arguments(*, root: bool) -> tuple[str, ...]:
    """Arguments of bubblewrap up to the program.

    Args:
        root: it is started by root, and `_map_users` gives its namespace two users.
    """
    arguments = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try".split()
    arguments += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    arguments += ["--hostname", "sandbox"]
    if root:
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # the driver needs these to become nobody
    else:
        arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY)]
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    # bubblewrap makes parent folders that only the owner may enter. With root, the program is not the owner.
    for folder in dict.fromkeys(str(p) for x in (*runtime_paths(), *devices) for p in [*Path(x).parents][-2::-1]):
        arguments += ["--perms", "0755", "--dir", folder]
    for path in runtime_paths():
        if os.path.islink(path):  # noqa: PTH114
            arguments += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        else:
            arguments += ["--ro-bind", path, path]
    packages = f"{sysconfig.get_path('stdlib')}/site-packages"
    if Path(packages).is_dir():
        arguments += ["--tmpfs", packages, "--remount-ro", packages]
    for device in devices:
        arguments += ["--dev-bind", device, device]
    # No /proc, because it describes the machine and gives access to other processes of the sandbox.
    arguments += ["--symlink", "/tmp/stdin", "/dev/stdin"]
    arguments += ["--perms", "1777", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp"]
    arguments += ["--remount-ro", "/", "--chdir", "/tmp"]
    arguments += [word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)]
    # Without a process of bubblewrap inside, the driver is the first process, and bubblewrap outside waits for its end.
    # Otherwise bubblewrap may end before, and leave a zombie where nobody reaps orphans.
    return (*arguments, "--as-pid-1")


def _first_process(told: int) -> int | None:
    """Return the id of the first process in the sandbox, reported by bubblewrap. None if bubblewrap gives up before."""
    text = b""
    while select.select([told], [], [], START_S)[0] and (chunk := os.read(told, 4096)):
        text += chunk
        if text.rstrip().endswith(b"}"):
            return json.loads(text)["child-pid"]
    return None


def _map_users(process: int) -> None:
    """Map the users root and nobody into the user namespace of a process.

    With root alone, the sandbox would run as root of the machine. Root has no limit on processes and can open root's
    files. So the driver switches to nobody as soon as bubblewrap has opened the files that bubblewrap mounts.
    """
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{process}/{kind}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")


class Sandbox:
    """A sandbox and its driver, from the start until all processes in the sandbox are dead.

    Entering it waits until the driver is ready. Two that are needed at once start side by side if both are made before
    the first is entered.
    """

    def __init__(
        self, kind: str, config: RewardConfig, *, unsafe: bool, channel: tuple[int, int] | None = None, **job: Any
    ) -> None:
        """Start the sandbox.

        Args:
            kind: stdin, call, serve (the program's side of tests) or asserts (the tests' side).
            config: Limits of time and memory.
            unsafe: True to run with the limits but without isolation.
            channel: Descriptors to read from and to write to, which connect serve and asserts. The caller closes them.
            job: Values that the driver needs for this kind.

        Raises:
            SandboxError: bubblewrap is not installed.
        """
        self._buffer = bytearray()
        self._init: int | None = None
        self._folder = tempfile.mkdtemp(prefix="maxpo-code-") if unsafe else None
        self._process: subprocess.Popen[bytes] | None = None
        job |= {"kind": kind, "case_s": config.code_case_s, "memory_bytes": config.code_memory_mib << 20}
        job |= {"seccomp": filter_program(), "unsafe": unsafe, "parent": os.getpid(), "folder": self._folder}
        job |= {"root": not unsafe and os.geteuid() == 0}
        job |= dict(zip(("reads", "writes"), channel or (), strict=False))
        try:
            self._start(job, channel or ())
        except BaseException:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        """Wait until the driver is ready to run the program.

        Raises:
            SandboxError: The sandbox is not ready in time, or reports an error.
        """
        try:
            status, message = self._frame(time.monotonic() + START_S)
        except CaseError as error:
            said = self._said() or f"the driver wrote no reason ({error})"
            raise SandboxError(f"the sandbox does not start: {said}") from None
        if status != "ready":
            said = f"{message.decode(errors='replace')} {self._said()}"
            raise SandboxError(f"the sandbox does not work here: {said}")

    def _start(self, job: dict[str, Any], channel: tuple[int, ...]) -> None:
        # The last word is for those who look at the list of processes.
        python = [os.path.realpath(sys.executable), *_PYTHON_OPTIONS, "-c", _BOOTSTRAP, f"{__package__}.driver"]
        parts = _code(*(_TESTS_MODULES if job["kind"] == "asserts" else _MODULES))
        with contextlib.ExitStack() as stack:
            # With a file in memory instead of a pipe, neither side waits for the other to read or write.
            given = stack.enter_context(os.fdopen(os.memfd_create("job"), "w+b"))
            given.write(marshal.dumps((parts, job)))
            given.seek(0)
            if job["unsafe"]:
                self._process = subprocess.Popen(
                    python,
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=channel,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                )
                return
            bwrap = shutil.which("bwrap")
            if bwrap is None:
                raise SandboxError("bubblewrap (bwrap) is not installed")
            arguments = [*bwrap_arguments(root=job["root"])]
            told, tells = os.pipe()
            block, unblock = os.pipe()
            stack.callback(os.close, told)
            stack.callback(os.close, unblock)
            if job["root"]:
                arguments += ["--userns-block-fd", str(block)]
            try:
                self._process = subprocess.Popen(
                    [bwrap, *arguments, "--info-fd", str(tells), "--", *python],
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[*channel, tells, block],
                    cwd="/",
                )
            finally:
                os.close(tells)
                os.close(block)
            child = _first_process(told)
            if child is None:  # bubblewrap has written the reason to standard error
                return
            self._init = os.pidfd_open(child)
            if job["root"]:
                _map_users(child)
                os.write(unblock, b"\n")

    def _said(self) -> str:
        """Return the last line that bubblewrap or the driver wrote to standard error. Empty if there is none."""
        assert self._process is not None and self._process.stderr is not None
        error = self._process.stderr
        ready = select.select([error], [], [], 0.5)[0]
        text = os.read(error.fileno(), 1 << 14).decode(errors="replace").strip() if ready else ""
        return text.splitlines()[-1] if text else ""

    def frame(self, seconds: float) -> tuple[str, bytes]:
        """Return status and data of the next frame.

        Raises:
            CaseError: No frame arrived within `seconds`, the sandbox has ended, or the bytes are not a valid frame.
        """
        return self._frame(time.monotonic() + seconds)

    def _frame(self, deadline: float) -> tuple[str, bytes]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _HEADER_BYTES:
                raise CaseError("error")
            self._read(deadline)
        header, _, rest = bytes(self._buffer).partition(b"\n")
        status, _, length = header.partition(b" ")
        if not length.isdigit() or len(length) > 9 or int(length) > OUTPUT_BYTES:
            raise CaseError("error")
        self._buffer = bytearray(rest)
        while len(self._buffer) < int(length):
            self._read(deadline)
        data, self._buffer = bytes(self._buffer[: int(length)]), self._buffer[int(length) :]
        return status.decode(errors="replace"), data

    def _read(self, deadline: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        out = self._process.stdout
        if not select.select([out], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise CaseError("timeout")
        chunk = os.read(out.fileno(), 1 << 16)
        if not chunk:
            raise CaseError("error")
        self._buffer += chunk

    def close(self) -> None:
        """Kill all processes in the sandbox and wait for their end."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    if self._folder is not None:
                        os.killpg(process.pid, signal.SIGKILL)
                    elif self._init is not None:
                        # The kernel kills all processes of the namespace before the first of them, the driver, ends.
                        # bubblewrap ends after that.
                        signal.pidfd_send_signal(self._init, signal.SIGKILL)
                    else:
                        process.kill()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        if self._init is not None:
            os.close(self._init)
            self._init = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def problem(*, unsafe: bool = False) -> str | None:
    """Return the reason why programs cannot be run here, and the remedy. None if programs can be run."""
    try:
        with Sandbox("stdin", RewardConfig(), unsafe=unsafe, code="print(input())", cases=["1"]) as box:
            status, data = box.frame(START_S)
        if (status, data) == ("ok", b"1\n"):
            return None
        said = f"a program that prints one line ended with {status} and {data!r}"
    except (SandboxError, CaseError, OSError, ValueError) as error:
        said = str(error)
    if unsafe:
        return said
    return (
        f"{said}. Install bubblewrap 0.8 or newer (`apt install bubblewrap`) and allow user namespaces: sysctl "
        "user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 (Debian), an AppArmor profile for bwrap "
        "or kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), a seccomp profile that allows them (Docker). "
        "docs/code-sandbox.md has the details. There is no fallback"
    )

"""Programs that try everything but the task. They are run in the sandbox only, never outside it.

The task of `PROBES` and `BOMBS` is: print `held`. The first line of the input is a port on which somebody listens, the
second a file that exists outside. A probe tries something and prints `held` only where it was refused; a bomb never
prints it. `FORGERIES` define f, which should return the square of a number, and return or do something else.
"""

from __future__ import annotations

import textwrap

HELPERS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
port, secret = int(input()), input()

def check(*attempts):
    for attempt in attempts:
        try:
            got = attempt()
        except (OSError, MemoryError, RuntimeError, ValueError, ImportError):
            continue
        if got != -1:
            print("broken:", attempt.__code__.co_firstlineno, got)
            return
    print("held")
"""

_PROBES = {
    "read_passwd": """
        check(lambda: open("/etc/passwd").read(), lambda: open("/etc/hostname").read(), lambda: os.listdir("/etc"))
    """,
    "read_a_file_of_the_host": """
        check(lambda: open(secret).read(), lambda: os.stat(secret), lambda: os.listdir(os.path.dirname(secret)))
    """,
    "proc": """
        check(*[lambda p=p: open(p, "rb").read() for p in
                ("/proc/1/environ", "/proc/self/environ", "/proc/self/mem", "/proc/mounts", "/sys/kernel/notes")])
    """,
    "environment": """
        print("broken" if any("SECRET" in name or "TOKEN" in name for name in os.environ) else "held", end="")
        # What execve left in memory, too.
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
        i = 0
        while environ[i]:
            if b"SECRET" in environ[i]:
                print("broken")
            i += 1
    """,
    "search_for_what_is_expected": """
        import gc
        mark = "expected-" + "elsewhere"
        mine = sys.modules["__main__"].__dict__["mark"]
        def holds(x, depth=0):
            if isinstance(x, (str, bytes)):
                text = x if isinstance(x, str) else x.decode("latin1")
                return mark in text
            if isinstance(x, dict) and depth < 3:
                return any(holds(v, depth + 1) for k, v in list(x.items()) if v is not mine)
            return isinstance(x, (list, tuple)) and depth < 3 and any(holds(v, depth + 1) for v in x if v is not mine)
        found = [type(x) for x in gc.get_objects() if holds(x)]
        frame = sys._getframe()
        while frame:
            found += [k for k, v in frame.f_locals.items() if v is not mine and holds(v)]
            frame = frame.f_back
        for folder, _, names in os.walk("/tmp"):
            found += [n for n in names if mark in open(os.path.join(folder, n), errors="replace").read()]
        print("broken" if found else "held", found if found else "")
    """,
    "network": """
        import socket
        def connect(family, address):
            s = socket.socket(family)
            s.connect(address)
            return "connected"
        check(lambda: connect(socket.AF_INET, ("127.0.0.1", port)), lambda: connect(socket.AF_INET6, ("::1", port)),
              lambda: connect(socket.AF_INET, ("192.0.2.1", 80)), lambda: socket.getaddrinfo("example.com", 80),
              lambda: connect(socket.AF_UNIX, "/run/dbus/system_bus_socket"),
              lambda: connect(socket.AF_UNIX, chr(0) + "/tmp/.X11-unix/X0"))
    """,
    "other_kinds_of_sockets": """
        check(*[lambda f=f: libc.socket(f, 3, 0) for f in (16, 17, 38, 40)], lambda: libc.socket(40, 1, 0))
    """,
    "write_outside": """
        places = ["/", "/dev", "/usr/lib", "/lib", os.path.dirname(os.__file__), os.path.dirname(sys.executable),
                  "/var/tmp", "/root", "/home", "/dev/shm", "/run", "/proc", os.path.dirname(secret)]
        check(*[lambda p=p: open(p + "/hostile-file", "w") for p in places], lambda: os.rename("/usr", "/tmp/usr"),
              lambda: os.chmod(os.__file__, 0o666), lambda: os.remove(os.__file__))
    """,
    "links": """
        os.symlink(secret, "hostile-link")
        os.symlink("/", "hostile-root")
        check(lambda: open("hostile-link").read(), lambda: open("hostile-root/etc/passwd").read(),
              lambda: open("/tmp/../../../../etc/passwd").read(), lambda: os.link(os.__file__, "hostile-hard"))
    """,
    "devices": """
        check(lambda: os.mknod("hostile-disk", 0o60666, os.makedev(8, 0)), lambda: open("/dev/mem", "rb"),
              lambda: os.mknod("hostile-null", 0o20666, os.makedev(1, 1)), lambda: open("/dev/kmsg", "rb"),
              lambda: open("/dev/tty", "w"), lambda: open("/dev/ptmx", "rb"), lambda: open("/dev/fuse", "rb"))
    """,
    "namespaces_and_mounts": """
        check(lambda: libc.unshare(0x10000000), lambda: libc.unshare(0x20000), lambda: libc.setns(0, 0),
              lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None), lambda: libc.umount2(b"/tmp", 2),
              lambda: libc.chroot(b"/tmp"), lambda: libc.syscall(155, b".", b"."))
    """,
    "trace_others": """
        class Piece(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
        piece = ctypes.byref(Piece(ctypes.addressof(ctypes.create_string_buffer(8)), 8))
        check(lambda: libc.ptrace(16, os.getppid(), 0, 0), lambda: libc.ptrace(0, 0, 0, 0),
              lambda: libc.process_vm_readv(os.getppid(), piece, 1, piece, 1, 0),
              lambda: libc.syscall(438, libc.syscall(434, os.getppid(), 0), 0, 0))
    """,
    "kernel_interfaces": """
        check(*[lambda n=n: libc.syscall(n, 0, 0, 0, 0, 0) for n in (250, 248, 321, 298, 323, 425, 246, 175, 103, 304)])
    """,
    "become_somebody": """
        check(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(1, 1, 1),
              lambda: 0 if os.getuid() == 0 or os.geteuid() == 0 else -1)
    """,
    "raise_limits": """
        import resource
        kinds = ["AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE", "STACK"]
        check(*[lambda k=k: resource.setrlimit(getattr(resource, "RLIMIT_" + k), (-1, -1)) for k in kinds],
              lambda: os.nice(-5))
    """,
    "processes": """
        import multiprocessing, subprocess
        check(lambda: os.fork(), lambda: subprocess.run([sys.executable, "-c", ""]),
              lambda: os.posix_spawn(sys.executable, ["python"], {}),
              lambda: multiprocessing.Process(target=print).start(), lambda: libc.syscall(57), lambda: libc.syscall(58),
              lambda: libc.syscall(56, 17, 0, 0, 0, 0), lambda: libc.syscall(435, 0, 0))
    """,
    "outlive": """
        def leave():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    import time
                    time.sleep(1000)
            return "left"
        check(leave, lambda: os.setsid(), lambda: os.setpgid(0, 0), lambda: libc.prctl(1, 0, 0, 0, 0),
              lambda: os.daemon() if hasattr(os, "daemon") else -1)
    """,
    "shell": """
        check(lambda: os.execv("/bin/sh", ["sh", "-c", "echo broken"]), lambda: os.execv("/usr/bin/env", ["env"]),
              lambda: os.execvp("bash", ["bash"]), lambda: [0, -1][os.system("echo broken") != 0])
    """,
    "memory_that_no_limit_counts": """
        check(lambda: os.memfd_create("x"), lambda: libc.shmget(0, 1 << 20, 0o1666), lambda: libc.semget(0, 1, 0o1666),
              lambda: libc.msgget(0, 0o1666), lambda: libc.syscall(447, 0), lambda: open("/dev/shm/hostile", "w"))
    """,
    "what_the_machine_has_few_of": """
        context = ctypes.c_ulong(0)
        check(lambda: libc.syscall(206, 60000, ctypes.byref(context)), lambda: libc.inotify_init(),
              lambda: libc.inotify_init1(0), lambda: libc.syscall(425, 8, ctypes.create_string_buffer(120)))
        for _ in range(1000):  # timers, of which a user has a number
            if libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) != 0:
                break
        else:
            print("broken: a thousand timers")
    """,
    "larger_buffers_of_the_kernel": """
        import fcntl, mmap, socket
        one, other = socket.socketpair()
        size = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        def hold_pages():
            class Piece(ctypes.Structure):
                _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
            piece = Piece(ctypes.addressof(ctypes.create_string_buffer(4096)), 4096)
            return libc.vmsplice(os.pipe()[1], ctypes.byref(piece), 1, 0)
        check(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24),
              lambda: one.setsockopt(socket.SOL_SOCKET, 32, 1 << 24), hold_pages,
              lambda: libc.syscall(54, one.fileno(), 1, 7, ctypes.byref(ctypes.c_int(1 << 20)), 4),
              lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20),
              lambda: os.splice(os.pipe()[0], os.pipe()[1], 1, flags=2))
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) != size:
            print("broken: a larger buffer")
    """,
    "memory": """
        import mmap
        check(lambda: bytearray(2 << 30), lambda: mmap.mmap(-1, 2 << 30), lambda: [0] * (1 << 28))
    """,
    "threads": """
        import threading, time
        threading.stack_size(1 << 16)
        def start():
            for _ in range(100):
                threading.Thread(target=time.sleep, args=(0.2,)).start()
            return "a hundred threads"
        check(start)
    """,
    "files": """
        def fill():
            for i in range(100):
                with open(f"hostile-{i}", "wb") as file:
                    file.write(bytes(1 << 20))
            return "a hundred MiB"
        def one():
            with open("hostile-one", "wb") as file:
                for _ in range(48):
                    file.write(bytes(1 << 20))
            return "one large file"
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        check(one, fill, lambda: [open("/dev/null") for _ in range(100)])
    """,
    "what_it_sees": """
        def visible(pid):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                return True
            return True
        check(lambda: -1 if os.uname().nodename == "sandbox" else os.uname().nodename,
              lambda: -1 if not any(map(visible, range(20, 3000))) else "others",
              lambda: -1 if sorted(os.listdir("/dev")) == sorted("null zero full random urandom stdin".split()) else 1,
              lambda: os.listdir("/home"),
              lambda: -1 if set(os.listdir("/usr/bin")) <= {os.path.basename(sys.executable)} else "programs")
    """,
}  # fmt: skip

_BOMBS = {
    "fork_bomb": """
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
    "thread_bomb": """
        import threading, time
        threading.stack_size(1 << 16)
        while True:
            try:
                threading.Thread(target=time.sleep, args=(1000,)).start()
            except RuntimeError:
                pass
    """,
    "memory_bomb": """
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    """,
    "disk_bomb": """
        for i in range(1000000):
            try:
                with open(f"hostile-{i}", "wb") as file:
                    file.write(bytes(1 << 22))
            except OSError:
                pass
    """,
    "folders_without_end": """
        while True:
            os.mkdir("d")
            os.chdir("d")
    """,
    "files_without_end": """
        i = 0
        while True:
            os.close(os.open(f"hostile-{i}", os.O_CREAT))
            i += 1
    """,
    "input_made_a_folder": "os.unlink('stdin'); os.mkdir('stdin'); open('stdin/x', 'w'); print('x')",
    "print_forever": "while True: print('x' * 1000)",
    "print_to_stderr_forever": "while True: sys.stderr.write('x' * 1000)",
    "print_without_newlines": "while True: os.write(1, bytes(1 << 16))",
    "sleep_forever": "import time; time.sleep(1e6)",
    "loop_forever": "while True: pass",
    "ignore_signals": """
        import signal, time
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """,
    "hang_at_exit": "import atexit, time; atexit.register(time.sleep, 1000); print('held')",
    "thread_at_exit": "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start(); print('held')",
    "kill_parent": "import time; os.kill(os.getppid(), 9); print('held', flush=True); time.sleep(100)",
    "stop_parent": "import time; os.kill(os.getppid(), 19); print('held', flush=True); time.sleep(100)",
    "kill_everything": "os.kill(-1, 9); print('held')",
    "kill_first_process": """
        import time
        for number in (9, 15, 11, 2):
            os.kill(1, number)
        time.sleep(100)
    """,
    "leave_without_a_word": "os._exit(0)",
    "leave_with_a_code": "print('held', flush=True); os._exit(1)",
    "crash": "print('held', flush=True); ctypes.string_at(0)",
    "abort": "print('held', flush=True); os.abort()",
    "recursion": """
        def f(n):
            return f(n + 1) + 1
        sys.setrecursionlimit(10**9)
        print(f(0))
    """,
    "nested_source": "exec('(' * 100000 + ')' * 100000)",
    "huge_number": "x = 10 ** (10 ** 9); print(str(x)[:10])",
    "huge_power": "print(9 ** 9 ** 9 ** 9)",
    "slow_expression": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    "not_unicode": "sys.stdout.buffer.write(bytes([255, 254]) + b'held')",
    "zero_bytes": "os.write(1, bytes(10) + b'held')",
    "surrogates": "print(chr(0xD800) + 'held')",
    "close_everything": "os.closerange(0, 64); import time; time.sleep(100)",
    "forged_frames": """
        for fd in range(64):
            try:
                os.write(fd, b"ok 4" + bytes([10]) + b"held")
            except OSError:
                pass
    """,
    "replace_itself": "os.execv(sys.executable, [sys.executable, '-c', 'while True: print(1)'])",
    "patch_the_interpreter": """
        import builtins, json
        for module in list(sys.modules.values()):
            for name in list(vars(module)) if module else []:
                if callable(vars(module)[name]):
                    try:
                        setattr(module, name, lambda *a, **k: "held")
                    except Exception:
                        pass
    """,
    "no_modules": "sys.modules.clear(); print('held'); raise KeyboardInterrupt",
    "bad_syntax": "print('held'",
}

_FORGERIES = {
    "equal_to_everything": """
        class Equal:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __bool__(self): return True
            def __getattr__(self, name): return self
            def __call__(self, *a): return self
        def f(n): return Equal()
    """,
    "number_equal_to_everything": """
        class Number(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def f(n): return Number(5)
    """,
    "leaves": """
        import os
        def f(n): os._exit(0)
    """,
    "exits": """
        def f(n): raise SystemExit(0)
    """,
    "exits_at_once": "raise SystemExit(0)",
    "no_asserts": """
        import builtins
        builtins.AssertionError = builtins.Exception = None
        builtins.__build_class__ = builtins.abs = builtins.all = builtins.len = lambda *a: True
        def f(n): return n
    """,
    "says_ok_everywhere": """
        import os
        def say():
            for fd in range(64):
                for text in (b"ok 0\\n" * 9, b"ready 0\\n", b'["value", true]\\n'):
                    try:
                        os.write(fd, text)
                    except OSError:
                        pass
        say()
        def f(n):
            say()
            return n
    """,
    "raises_passed": """
        def f(n): raise AssertionError("passed")
    """,
    "patches_the_driver": """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith("maxpo"):
                for key in list(vars(module)):
                    if callable(vars(module)[key]):
                        setattr(module, key, lambda *a, **k: True)
        def f(n): return n
    """,
    "patches_json": """
        import json
        json.dumps = lambda *a, **k: "true"
        json.loads = lambda *a, **k: ["f", ["l"], ["d"]]
        def f(n): return n
    """,
    "not_a_number": """
        def f(n): return float("nan")
    """,
    "true": """
        def f(n): return True
    """,
    "never_ends_its_answer": """
        import os
        def f(n):
            while True:
                for fd in (3, 4):
                    try:
                        os.write(fd, b"x" * 65536)
                    except OSError:
                        pass
    """,
    "deep_value": """
        def f(n):
            x = []
            for _ in range(100000):
                x = [x]
            return x
    """,
    "colliding_set": """
        def f(n): return {i * (2**61 - 1) for i in range(20000)}
    """,
    "kills_all_it_sees": """
        import os
        def f(n):
            os.kill(-1, 9)
    """,
    "no_function": "g = 1",
    "replaces_the_tests_functions": """
        def f(n): return 0
        def check(candidate): pass
        def isinstance(*a): return True
        bool = int = len = sorted = set = abs = isinstance
    """,
}

PROBES = {name: HELPERS + textwrap.dedent(text) for name, text in _PROBES.items()}
BOMBS = {name: HELPERS + textwrap.dedent(text) for name, text in _BOMBS.items()}
FORGERIES = {name: textwrap.dedent(text) for name, text in _FORGERIES.items()}

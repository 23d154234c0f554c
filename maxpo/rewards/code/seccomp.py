"""A seccomp filter of the system calls that a scored program must not make.

The filter adds to namespaces and limits. Forbidden are calls that make processes (so that one memory limit covers the
program), sockets, tracing, and parts of the kernel that no answer needs. Also forbidden is what no other limit counts:
memory that outlives its mapping (larger buffers of sockets and pipes, pages given to a pipe, files in memory), and
objects of which the machine or the user has a fixed number (contexts of asynchronous input and output, inotify).
"""

from __future__ import annotations

import errno
import platform
import struct

_X86_64 = {
    "clone": 56, "fork": 57, "vfork": 58, "clone3": 435,
    "setpgid": 109, "setsid": 112, "prctl": 157,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "socket": 41, "setsockopt": 54, "io_uring_setup": 425, "io_setup": 206,
    "inotify_init": 253, "inotify_init1": 294, "splice": 275, "tee": 276, "vmsplice": 278, "fcntl": 72,
    "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240,
    "unshare": 272, "setns": 308, "chroot": 161, "pivot_root": 155, "mount": 165, "umount2": 166,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "statmount": 457, "listmount": 458,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300,
    "add_key": 248, "request_key": 249, "keyctl": 250,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "personality": 135, "syslog": 103, "acct": 163,
    "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "modify_ldt": 154,
}  # fmt: skip
_AARCH64 = {
    "clone": 220, "clone3": 435,
    "setpgid": 154, "setsid": 157, "prctl": 167,
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_getfd": 438,
    "socket": 198, "setsockopt": 208, "io_uring_setup": 425, "io_setup": 0,
    "inotify_init1": 26, "splice": 76, "tee": 77, "vmsplice": 75, "fcntl": 25,
    "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180,
    "unshare": 97, "setns": 268, "chroot": 51, "pivot_root": 41, "mount": 40, "umount2": 39,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "statmount": 457, "listmount": 458,
    "name_to_handle_at": 264, "open_by_handle_at": 265, "fanotify_init": 262,
    "add_key": 217, "request_key": 218, "keyctl": 219,
    "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "personality": 92, "syslog": 116, "acct": 89,
    "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273, "delete_module": 106,
}  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""Number in the audit interface and system calls of each machine."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data. Those of arguments are their low words.
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD, _PR_SET_PDEATHSIG, _F_SETPIPE_SZ, _X32 = 0x10000, 1, 1031, 0x40000000
_BY_ARGUMENT = ("clone", "clone3", "prctl", "fcntl")


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Threads can be made, processes cannot. A filter cannot read the flags of clone3, which lie in memory. So clone3
    fails with ENOSYS, and libraries fall back to clone.

    Args:
        machine: Key of `MACHINES`. None for this machine.

    Raises:
        ValueError: The machine is not one of `MACHINES`.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"no seccomp filter for {machine}: only for {', '.join(MACHINES)}")
    arch, calls = MACHINES[machine]
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    # Each step: code, instructions to skip if true, instructions to skip if false, operand.
    steps = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":  # the x32 interface has other numbers for the same calls
        steps += [(_AT_LEAST, 0, 1, _X32), refuse]
    for name, number in calls.items():
        if name not in _BY_ARGUMENT:
            steps += [(_EQUAL, 0, 1, number), refuse]
    steps += [(_EQUAL, 0, 1, calls["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    argument = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    steps += [(_EQUAL, 0, 4, calls["clone"]), argument, (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse, allow]
    # The signal that kills the program together with its parent must not be switched off.
    steps += [(_EQUAL, 0, 4, calls["prctl"]), argument, (_EQUAL, 0, 1, _PR_SET_PDEATHSIG), refuse, allow]
    # A pipe keeps its usual size, because no limit counts the memory of a larger one.
    command = (_LOAD, 0, 0, _SECOND_ARGUMENT)
    steps += [(_EQUAL, 0, 4, calls["fcntl"]), command, (_EQUAL, 0, 1, _F_SETPIPE_SZ), refuse, allow, allow]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)

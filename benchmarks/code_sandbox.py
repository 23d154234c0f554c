"""Programs per second that the verifier `code` scores: python benchmarks/code_sandbox.py [seconds] [processes]."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from typing import Any

from maxpo.rewards.code.verifier import cannot_run, code, code_unsafe_no_sandbox

KINDS: dict[str, tuple[str, Any]] = {
    "stdin, 1 case": ("print(int(input()) + 1)", {"inputs": ["1"], "outputs": ["2"]}),
    "stdin, 10 cases": ("print(int(input()) + 1)", {"inputs": ["1"] * 10, "outputs": ["2"] * 10}),
    "calls, 10 cases": ("def f(n): return n + 1", {"inputs": [[1]] * 10, "outputs": [2] * 10, "fn_name": "f"}),
    "asserts, 3 cases": ("def f(n): return n + 1", {"test_list": ["assert f(1) == 2"] * 3}),
}


def judge(kind: str, seconds: float, unsafe: bool) -> int:
    program, tests = KINDS[kind]
    verify = code_unsafe_no_sandbox if unsafe else code
    count, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert verify(program, tests).reward == 1
        count += 1
    return count


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, unsafe in (("code", False), ("code_unsafe_no_sandbox", True)):
            if (cannot := cannot_run(name)) is not None:
                print(f"{name}: {cannot}")
                continue
            for kind in KINDS:
                pool.starmap(judge, [(kind, 0.0, unsafe)] * processes)  # imports
                started = time.monotonic()
                count = sum(pool.starmap(judge, [(kind, seconds, unsafe)] * processes, chunksize=1))
                print(f"{name}, {kind}: {count / (time.monotonic() - started):.1f} programs/s, {processes} processes")


if __name__ == "__main__":
    main()

"""The verifier of Python programs: runs them against tests, in a sandbox (docs/code-sandbox.md)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from maxpo.config import RewardConfig
from maxpo.rewards.base import Score
from maxpo.rewards.code.cases import CodeTests, read_tests, same_output, same_value
from maxpo.rewards.code.extraction import extract_program
from maxpo.rewards.code.sandbox import GRACE_S, CaseError, Sandbox, problem
from maxpo.rewards.code.wire import encode

CODE_VERIFIERS = ("code", "code_unsafe_no_sandbox")
"""Names of the verifiers here."""
_limits = RewardConfig()  # set once at the start of the process


def configure(config: RewardConfig) -> None:
    """Set the limits of the programs that this process runs."""
    global _limits
    _limits = config


def cannot_run(verifier: str) -> str | None:
    """Return the reason why a verifier of programs cannot work on this machine. None: it can, or runs no programs."""
    return problem(unsafe=verifier != "code") if verifier in CODE_VERIFIERS else None


def code(text: str, reference: object) -> Score:
    """Reward 1 if the Python program in the text passes all tests of the reference, otherwise 0.

    `extract_program` finds the program. A program that fails, crashes or exceeds a limit has failed the case. After a
    case that takes too long the others are not run and count as failed.

    Args:
        text: Any text.
        reference: Tests in one of the layouts that `read_tests` knows.

    Returns:
        The reward, and two parts. `passed` is the share of the cases that passed. `ran` is 1 if every case ended by
        itself, without an error, otherwise 0.

    Raises:
        ValueError: The reference is not valid.
        SandboxError: The sandbox failed before the program ran.
    """
    return _score(text, reference, unsafe=False)


def code_unsafe_no_sandbox(text: str, reference: object) -> Score:
    """Like `code`, with the same limits, but without the sandbox: programs can read all files of the run's user."""
    return _score(text, reference, unsafe=True)


def _score(text: str, reference: object, *, unsafe: bool) -> Score:
    tests = read_tests(reference).first(_limits.code_max_cases)
    program = extract_program(text).encode(errors="replace").decode()  # JSON has no lone surrogates
    count = len(tests.asserts or tests.inputs)
    verdicts = [*(_run_asserts if tests.asserts else _run_cases)(program, tests, unsafe=unsafe)]
    passed = sum(right for right, _ in verdicts) / count
    ran = len(verdicts) == count and all(ended for _, ended in verdicts)
    return Score(reward=float(passed == 1), success=passed == 1, parts={"passed": passed, "ran": float(ran)})


def _run_cases(program: str, tests: CodeTests, *, unsafe: bool) -> Iterator[tuple[bool, bool]]:
    """Yield for each case that was run: True if it is right, and True if it ended by itself."""
    if tests.function is None:
        job: dict[str, Any] = {"cases": list(tests.inputs)}
    else:
        job = {"cases": [encode(arguments) for arguments in tests.inputs], "function": tests.function}
    kind = "stdin" if tests.function is None else "call"
    with Sandbox(kind, _limits, unsafe=unsafe, code=program, **job) as box:
        for wanted in tests.outputs:
            try:
                status, data = box.frame(_limits.code_case_s + GRACE_S)
            except CaseError:
                return  # the program has stopped or killed the driver
            right = status == "ok" and (
                same_output(data.decode(errors="replace"), wanted, _limits.code_float_tolerance)
                if kind == "stdin"
                else _is_value(data, wanted)
            )
            yield right, status == "ok"


def _is_value(data: bytes, wanted: tuple[object, ...]) -> bool:
    """Return True if a value from the sandbox is a right one. The data may be anything, since programs can write it."""
    try:
        tree = json.loads(data)
        return any(same_value(tree, value, _limits.code_float_tolerance) for value in wanted)
    except (ValueError, TypeError, IndexError, KeyError, RecursionError, OverflowError):
        return False


def _run_asserts(program: str, tests: CodeTests, *, unsafe: bool) -> Iterator[tuple[bool, bool]]:
    """Yield as `_run_cases` does, for tests that are code. A second sandbox runs these and calls the program."""
    assert tests.names is not None
    count = len(tests.asserts)
    with contextlib.ExitStack() as stack:
        fds = [*os.pipe(), *os.pipe()]
        calls_out, calls_in, values_out, values_in = fds
        closes = stack.enter_context(contextlib.ExitStack())
        for fd in fds:
            closes.callback(os.close, fd)
        serving = Sandbox("serve", _limits, unsafe=unsafe, channel=(calls_out, values_in), code=program, count=count)
        stack.callback(serving.close)
        testing = Sandbox(
            "asserts",
            _limits,
            unsafe=unsafe,
            channel=(values_out, calls_in),
            setup=tests.setup,
            tests=tests.asserts,
            count=count,
            **asdict(tests.names),
        )
        stack.callback(testing.close)
        for box in (serving, testing):
            box.wait_until_ready()
        closes.close()  # so that each side notices the end of the other
        for _ in range(count):
            try:
                status, data = testing.frame(_limits.code_case_s + GRACE_S)
            except CaseError:
                return
            if status == "unsupported":
                raise ValueError(f"code: {data.decode(errors='replace')}")
            yield status == "ok", status in ("ok", "wrong")

"""The tests' side of a program that is tested by asserts. Runs inside a separate sandbox.

Tests and program share nothing but a pipe for plain data. Values of the program have no methods of the program here.
Whatever the program prints, patches or exits with, it cannot report that a test has passed.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
from collections.abc import Mapping
from typing import Any

from maxpo.rewards.code.wire import OUTPUT_BYTES, UnsupportedError, decode, encode, frame, write


def names_in(text: str) -> tuple[set[str], set[str]]:
    """Return the names that a program text uses, and those that it defines anywhere."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return used, defined


def run_asserts(job: Mapping[str, Any], out: int) -> int:
    """Run the tests. Calls go out on descriptor 3, values come in on 4, and a frame per test goes to `out`."""
    values = open(4, "rb")  # noqa: SIM115

    def call(name: str, *args: object, **kwargs: object) -> object:
        write(3, json.dumps([name, encode(args, strict=True), encode(kwargs, strict=True)]).encode() + b"\n")
        line = values.readline(OUTPUT_BYTES)
        if not line.endswith(b"\n"):
            raise RuntimeError("the program has ended")
        kind, answer = json.loads(line)
        if kind == "value":
            return decode(answer)
        error: object = getattr(builtins, str(answer), None)
        raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError(answer)

    names: dict[str, object] = {"__name__": "tests"}
    try:
        used, defined = zip(*map(names_in, [job["setup"], *job["tests"]]), strict=True)
        for name in set[str]().union(*used) - set[str]().union(*defined) - set(dir(builtins)):
            names[name] = functools.partial(call, name)  # a function of the program
        exec(compile(job["setup"], "setup", "exec"), names)
        compiled = [compile(text, "test", "exec") for text in job["tests"]]
    except Exception as error:
        frame(out, "unsupported", f"the tests cannot be used: {type(error).__name__}: {error}".encode())
        return 0
    for test in compiled:
        try:
            exec(test, names)
            frame(out, "ok")
        except UnsupportedError as error:
            frame(out, "unsupported", str(error).encode())
        except AssertionError:
            frame(out, "wrong")
        except Exception:
            frame(out, "error")
    return 0

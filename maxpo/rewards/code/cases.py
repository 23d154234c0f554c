"""References of the verifier `code`: layouts of common data sets, and comparison of outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, TypeGuard, cast

from maxpo.rewards.code.wire import OUTPUT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """The test cases of one problem."""

    inputs: tuple[Any, ...] = ()
    """Standard inputs (text), or lists of arguments."""
    outputs: tuple[Any, ...] = ()
    """Expected outputs, one for each input."""
    function: str | None = None
    """Name of the function to call. None: the program reads and prints."""
    setup: str = ""
    """Code before the asserts."""
    asserts: tuple[str, ...] = ()
    """Code that raises if the program is wrong. With asserts there are no inputs and outputs."""

    def first(self, count: int) -> CodeTests:
        """Return the first `count` cases."""
        return CodeTests(
            inputs=self.inputs[:count],
            outputs=self.outputs[:count],
            function=self.function,
            setup=self.setup,
            asserts=self.asserts[:count],
        )


def _read(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"code: {what} is not JSON: {error}") from error


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def read_tests(reference: object) -> CodeTests:
    """Return the test cases of a reference in any of the layouts of docs/code-sandbox.md.

    Raises:
        ValueError: The layout is unknown, or there are no cases.
    """
    if isinstance(reference, str):
        reference = _read(reference, "the reference")
    if _is_list(reference):
        rows = [cast("Mapping[str, object]", row) for row in reference if isinstance(row, Mapping)]
        if len(rows) < len(reference) or not all({"input", "output"} <= row.keys() for row in rows):
            raise ValueError("code: a list of cases must have objects with `input` and `output`")
        functional = any(row.get("testtype") == "functional" for row in rows)
        if functional:
            raise ValueError("code: cases of testtype functional need `fn_name`: give {inputs, outputs, fn_name}")
        reference = {"inputs": [row["input"] for row in rows], "outputs": [row["output"] for row in rows]}
    if not isinstance(reference, Mapping):
        raise ValueError(f"code: a reference must be an object or a list of cases, not {type(reference).__name__}")
    fields = cast("Mapping[str, object]", reference)
    if "input_output" in fields:
        return read_tests(fields["input_output"])
    tests = _read_cases(fields) if fields.keys() >= {"inputs", "outputs"} else _read_asserts(fields)
    if not tests.inputs and not tests.asserts:
        raise ValueError("code: the reference has no test cases")
    return tests


def _read_cases(fields: Mapping[str, object]) -> CodeTests:
    inputs, outputs, function = fields["inputs"], fields["outputs"], fields.get("fn_name")
    if not _is_list(inputs) or not _is_list(outputs) or len(inputs) != len(outputs):
        raise ValueError("code: `inputs` and `outputs` must be lists of the same length")
    if function is None:
        expected = _texts(outputs)
        if any(len(text.encode(errors="replace")) > OUTPUT_BYTES for text in expected):
            raise ValueError(f"code: an expected output is longer than the {OUTPUT_BYTES} bytes that are read")
        return CodeTests(inputs=_texts(inputs), outputs=expected)
    arguments: list[list[object]] = []
    for given in inputs:
        if isinstance(given, str):  # an argument per line
            given = [_read(line, "an input") for line in given.split("\n") if line.strip()]
        if not _is_list(given):
            raise ValueError("code: with `fn_name`, each input must be a list of arguments")
        arguments.append(list(given))
    return CodeTests(inputs=tuple(arguments), outputs=tuple(map(_wanted, outputs)), function=str(function))


def _texts(side: Sequence[object]) -> tuple[str, ...]:
    """Return inputs or outputs as texts, with lists of lines joined."""
    texts: list[str] = []
    for value in side:
        lines = list(value) if _is_list(value) else [value]
        if not all(isinstance(line, str) for line in lines):
            raise ValueError("code: without `fn_name`, inputs and outputs must be texts or lists of lines")
        texts.append("\n".join(map(str, lines)))
    return tuple(texts)


def _wanted(output: object) -> tuple[object, ...]:
    """Return the right values: JSON or a text, or the single item of a list, as in some outputs of APPS."""
    if isinstance(output, str):
        try:
            return (json.loads(output),)
        except ValueError:
            return (output,)
    return (output, output[0]) if _is_list(output) and len(output) == 1 else (output,)


def _read_asserts(fields: Mapping[str, object]) -> CodeTests:
    entry = fields.get("entry_point")
    parts: list[object] = [
        fields.get("test_imports") or [],
        fields.get("test_setup_code") or "",
        fields.get("setup") or "",
    ]
    setup = "\n".join("\n".join(map(str, part)) if _is_list(part) else str(part) for part in parts).strip()
    tests: object = fields.get("test_list") or fields.get("assert_case") or fields.get("test") or []
    items: Sequence[object] = tests if _is_list(tests) else [tests]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise ValueError("code: tests must be texts")
    if not texts:
        raise ValueError(
            f"code: a reference must have `inputs` and `outputs`, `test_list` or `test`; this one has {sorted(fields)}"
        )
    # HumanEval defines `check(candidate)` and does not call it.
    texts = [f"{text}\n\ncheck({entry})\n" if entry and "def check(" in text else text for text in texts]
    return CodeTests(setup=setup, asserts=tuple(texts))


def same_output(got: str, wanted: str) -> bool:
    """Return True if two outputs agree line by line: equal text, or the same words with equal decimal numbers.

    White space at the ends of lines and of the text does not count.
    """
    mine, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (got, wanted))
    return len(mine) == len(theirs) and all(map(_same_line, mine, theirs))


def _same_line(got: str, wanted: str) -> bool:
    if got == wanted:
        return True
    mine, theirs = got.split(), wanted.split()
    return len(mine) == len(theirs) and all(a == b or _same_number(a, b) for a, b in zip(mine, theirs, strict=True))


def _same_number(got: str, wanted: str) -> bool:
    try:
        return Decimal(got) == Decimal(wanted)
    except InvalidOperation:
        return False


def same_value(tree: object, wanted: object) -> bool:
    """Return True if an encoded value from the sandbox (`wire.encode`) equals the expected one.

    Lists and tuples are equal here, because JSON has no tuples. Everything else compares as with `==`. The value is not
    decoded, because sets and dicts of chosen numbers could take hours to build.
    """
    if not isinstance(tree, list):
        return not _is_container(wanted) and bool(tree == wanted)
    kind, *items = cast("list[Any]", tree)
    if kind == "i":
        return isinstance(wanted, int | float) and bool(int(items[0], 16) == wanted)
    if kind in ("l", "t"):
        return (
            _is_list(wanted)
            and len(items) == len(wanted)
            and all(same_value(item, want) for item, want in zip(items, wanted, strict=True))
        )
    if kind == "d" and isinstance(wanted, Mapping):
        left = dict(cast("Mapping[object, object]", wanted))
        if len(items) != len(left):
            return False
        for key, value in items:
            name: object = key
            if isinstance(key, list):  # a number; JSON has such keys as text
                name = str(int(cast("list[Any]", key)[1], 16))
            if not isinstance(name, str) or name not in left or not same_value(value, left.pop(name)):
                return False
        return True
    return False


def _is_container(value: object) -> bool:
    return _is_list(value) or isinstance(value, Mapping)

"""References of the verifier `code`: layouts of common data sets, and comparison of outputs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, TypeGuard, cast

from maxpo.config import RewardConfig
from maxpo.rewards.code.assert_names import ProgramNames, program_names
from maxpo.rewards.code.wire import OUTPUT_BYTES

_TOLERANCE = RewardConfig.code_float_tolerance
_WORD = re.compile(r"[^ \t\n\r\f\v]+")
_NUMBER = re.compile(r"[+-]?(?=\.?[0-9])(?:0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""A decimal number. The groups are its fraction and its exponent. A number with leading zeros is a text."""


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
    names: ProgramNames | None = None
    """Functions of the program that the asserts call."""

    def first(self, count: int) -> CodeTests:
        """Return the first `count` cases."""
        return replace(self, inputs=self.inputs[:count], outputs=self.outputs[:count], asserts=self.asserts[:count])


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
    wanted: list[tuple[object, ...]] = []
    for given, output in zip(inputs, outputs, strict=True):
        if isinstance(given, str):  # an argument per line, each as JSON; then the output is JSON, too
            given = [_read(line, "an input") for line in given.split("\n") if line.strip()]
            wanted.append((_json_or_text(output),))
        else:
            wanted.append((output, output[0]) if _is_list(output) and len(output) == 1 else (output,))
        if not _is_list(given):
            raise ValueError("code: with `fn_name`, each input must be a list of arguments")
        arguments.append(list(given))
    return CodeTests(inputs=tuple(arguments), outputs=tuple(wanted), function=str(function))


def _texts(side: Sequence[object]) -> tuple[str, ...]:
    """Return inputs or outputs as texts, with lists of lines joined."""
    texts: list[str] = []
    for value in side:
        lines = list(value) if _is_list(value) else [value]
        if not all(isinstance(line, str) for line in lines):
            raise ValueError("code: without `fn_name`, inputs and outputs must be texts or lists of lines")
        texts.append("\n".join(map(str, lines)))
    return tuple(texts)


def _json_or_text(output: object) -> object:
    """Return the value of an output that is written as JSON. What is not JSON is a text."""
    try:
        return json.loads(output) if isinstance(output, str) else output
    except ValueError:
        return output


def _read_asserts(fields: Mapping[str, object]) -> CodeTests:
    entry = fields.get("entry_point") or None
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
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        raise ValueError(f"code: `entry_point` must be the name of a function, not {entry!r}")
    names = program_names(setup, tuple(texts), entry)
    return CodeTests(setup=setup, asserts=tuple(texts), names=names)


def same_output(got: str, wanted: str, tolerance: float = _TOLERANCE) -> bool:
    """Return True if two outputs agree line by line: equal text, or the same words with equal numbers.

    White space at the ends of lines and of the text does not count. White space is that of ASCII. Numbers are decimal,
    in ASCII digits. Two integers are equal only if they are written alike. A wanted integer equals the same number in
    another form, such as 2.0. A wanted number with a fraction or an exponent equals all within the tolerance, which is
    relative, or absolute if this is larger.
    """
    mine, theirs = ([_WORD.findall(line) for line in text.strip(" \t\n\r\f\v").split("\n")] for text in (got, wanted))
    return len(mine) == len(theirs) and all(
        len(words) == len(others)
        and all(a == b or _same_number(a, b, tolerance) for a, b in zip(words, others, strict=True))
        for words, others in zip(mine, theirs, strict=True)
    )


def _same_number(got: str, wanted: str, tolerance: float) -> bool:
    mine, theirs = _NUMBER.fullmatch(got), _NUMBER.fullmatch(wanted)
    if mine is None or theirs is None or not (any(mine.groups()) or any(theirs.groups())):
        return False
    if any(theirs.groups()) and math.isfinite(float(got)) and math.isfinite(float(wanted)):
        return _is_close(float(got), float(wanted), tolerance)
    try:
        return Decimal(got) == Decimal(wanted)
    except InvalidOperation:  # an exponent beyond all bounds
        return False


def _is_close(got: float, wanted: float, tolerance: float) -> bool:
    try:
        return math.isclose(got, wanted, rel_tol=tolerance, abs_tol=tolerance) or (got != got and wanted != wanted)
    except OverflowError:  # an integer that no float can hold
        return False


def same_value(tree: object, wanted: object, tolerance: float = _TOLERANCE) -> bool:
    """Return True if an encoded value from the sandbox (`wire.encode`) equals the expected one of JSON.

    Lists and tuples are equal here, because JSON has no tuples. Texts, None and bool equal only their own kind. An
    expected integer equals the same number as a float. An expected float equals all numbers within the tolerance, which
    is relative, or absolute if this is larger. NaN equals NaN. The value is not decoded, because sets and dicts of
    chosen numbers could take hours to build.
    """
    if tree is None or wanted is None or isinstance(tree, bool) or isinstance(wanted, bool):
        return tree is wanted
    if isinstance(tree, str):
        return tree == wanted
    if isinstance(tree, float):
        return _same_as_number(tree, wanted, tolerance)
    if not isinstance(tree, list):
        return False
    kind, *items = cast("list[Any]", tree)
    if kind == "i":
        return _same_as_number(int(items[0], 16), wanted, tolerance)
    if kind in ("l", "t"):
        return (
            _is_list(wanted)
            and len(items) == len(wanted)
            and all(same_value(item, want, tolerance) for item, want in zip(items, wanted, strict=True))
        )
    return (
        kind == "d"
        and isinstance(wanted, Mapping)
        and _same_dict(items, cast("Mapping[str, object]", wanted), tolerance)
    )


def _same_as_number(got: float, wanted: object, tolerance: float) -> bool:
    return _is_close(got, wanted, tolerance) if isinstance(wanted, float) else isinstance(wanted, int) and got == wanted


def _same_dict(pairs: list[Any], wanted: Mapping[str, object], tolerance: float) -> bool:
    left = dict(wanted)
    if len(pairs) != len(left):
        return False
    for key, value in pairs:
        name: object = key
        if isinstance(key, list):  # a number; JSON has such keys as text
            name = str(int(cast("list[Any]", key)[1], 16))
        if not isinstance(name, str) or name not in left or not same_value(value, left.pop(name), tolerance):
            return False
    return True

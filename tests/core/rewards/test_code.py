"""The verifier of programs: layouts of tests, comparison, the command, and where it refuses to start."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxpo.config import Config, RewardConfig
from maxpo.configure.checking import check
from maxpo.rewards.code import sandbox, verifier
from maxpo.rewards.code.assert_names import ProgramNames
from maxpo.rewards.code.cases import read_tests, same_output, same_value
from maxpo.rewards.code.seccomp import MACHINES, filter_program
from maxpo.rewards.code.verifier import cannot_run, code, code_unsafe_no_sandbox, extract_program
from maxpo.rewards.code.wire import UnsupportedError, decode, encode

HUMAN_EVAL = """
METADATA = {"author": "x"}

def check(candidate):
    for n in range(3):
        assert candidate(n, by=2) == n + 2
    try:
        candidate("x", by=1)
        assert False
    except TypeError:
        pass
"""


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1)", "print(1)"),
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)"),
        ("```python\na\n```\n```py\nb\n```", "b"),
        ("```python\na\n```\n```json\n{}\n```", "a"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("```\na\n```", "a"),
        ("x\n  ```Python3\na\n  b\n```", "a\n  b"),
        ("```python\na\n", "a\n"),  # cut off
        ("```python\n```", ""),
        ("", ""),
        # An output, a call in a shell, or a session after the program does not replace it.
        ("```python\na\n```\nIt prints:\n```\n1\n```", "a"),
        ("```python\na\n```\n```text\n1\n```\n```bash\npython a.py\n```\n```pycon\n>>> a\n```", "a"),
        ("```\na\n```\n```\nb\n```", "b"),
        # Names of the language.
        ("```python title=x.py\na\n```", "a"),
        ("``` {.python .numberLines}\na\n```", "a"),
        ("```PY3.11\na\n```", "a"),
        ("```python:a.py\na\n```", "a"),
        # A fence is closed by the same mark, as long or longer, without an info string.
        ("```python\na\n```python\nb\n```", "a\n```python\nb"),
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''"),
        ("~~~python\na\n```\nb\n~~~~", "a\n```\nb"),
        ("```python\na\n~~~\nb\n```", "a\n~~~\nb"),
        ("```python\na\n  ```  \n", "a"),
        ("```python\na\n    ```\nb\n```", "a\n    ```\nb"),
        ("Use ```python inline``` here.\n```python\na\n```", "a"),
        ("    ```python\n    a\n    ```", "    ```python\n    a\n    ```"),  # four spaces: not a fence
        ("```python `x`\na\n~~~python\nb\n~~~", "b"),  # a mark of backticks has none in its info string
        # Thinking.
        ("<think>\nmaybe\n```python\na\n</think>\n```python\nb\n```", "b"),
        ("<think>\nmaybe\n```\na</think>\n```python\nb\n```\n", "b"),
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b"),
        ("<think>\n```python\na\n```\n</think>\n```\nb\n```", "b"),
        ("a\n```python\na\n```\n</think>\n```python\nb\n```", "b"),
        ("<think>\n```python\na\n```\n</think>\nThat is it.", "a"),
        ("<think>x</think>\nprint(1)", "\nprint(1)"),
        ("<think>\n```python\na\n```", "a"),
        # Indentation and ends of lines.
        ("1. First:\n\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
        ("- x\n  - y\n    ```python\n    a\n      b\n    ```", "a\n  b"),
        ("```python\n    a\n      b\n```", "a\n  b"),
        ("```python\n\n\ta\n\t\tb\n```", "\na\n\tb"),
        ("> ```python\n> a\n>   b\n> ```", "a\n  b"),
        ("Here:\r\n```python\r\na\r\n  b\r\n```\r\nDone.", "a\n  b"),
    ],
)
def test_the_last_python_block_is_the_program(text: str, program: str) -> None:
    assert extract_program(text) == program


PARTS = [
    "words\n",
    "",
    "- an item\n",
    "`code`\n",
    "<b>\n",
    "```json\n{}\n```\n",
    "~~~\n```python\n~~~\n",
    "````\n```\n````\n",
]
LINES = ["x = 1", "if x:", "    y = 2", "", "\ts", "# ``", "> q", "- l", "    ```", "```python"]
FENCES = ["````", "`````", "~~~", "~~~~~"]


@given(
    before=st.lists(st.sampled_from(PARTS)).map("\n".join),
    program=st.lists(st.sampled_from(LINES)).map(lambda lines: "\n".join(["import a", *lines])),
    fence=st.sampled_from(FENCES),
    indent=st.sampled_from(["", " ", "   "]),
    end=st.sampled_from(["\n", "\r\n"]),
    after=st.lists(st.sampled_from(PARTS)).map("\n".join),
    thinking=st.sampled_from(["", "<think>\n```\n", "<think>a\n~~~python\nb\n"]),
)
def test_a_fenced_program_is_found_in_any_answer(
    before: str, program: str, fence: str, indent: str, end: str, after: str, thinking: str
) -> None:
    block = "\n".join(indent + line for line in program.split("\n")) if indent else program
    text = f"{before}\n\nHere:\n\n{indent}{fence}python\n{block}\n{indent}{fence}\n\n{after}"
    text = (thinking and f"{thinking}</think>\n{text}") or text
    assert extract_program(text.replace("\n", end)) == program


@pytest.mark.parametrize(
    ("reference", "inputs", "outputs", "function"),
    [
        ({"inputs": ["1\n"], "outputs": ["2\n"]}, ("1\n",), ("2\n",), None),
        ({"inputs": [["1", "2"]], "outputs": [["3"]], "fn_name": None}, ("1\n2",), ("3",), None),
        ('{"inputs": ["1"], "outputs": ["2"]}', ("1",), ("2",), None),
        ({"input_output": '{"inputs": ["1"], "outputs": ["2"]}', "x": 1}, ("1",), ("2",), None),
        ([{"input": "1", "output": "2", "testtype": "stdin"}], ("1",), ("2",), None),
        ({"inputs": [[1, [2]]], "outputs": [3], "fn_name": "f"}, ([1, [2]],), ((3,),), "f"),
        ({"inputs": ['1\n"a"'], "outputs": ["[3]"], "fn_name": "f"}, ([1, "a"],), (([3],),), "f"),
        ({"inputs": [[1]], "outputs": [[3]], "fn_name": "f"}, ([1],), (([3], 3),), "f"),
        ({"inputs": [[1]], "outputs": ["yes"], "fn_name": "f"}, ([1],), (("yes",),), "f"),
        ({"inputs": [[1]], "outputs": ["123"], "fn_name": "f"}, ([1],), (("123",),), "f"),  # JSON, so a text
        ({"inputs": ["1"], "outputs": ["123"], "fn_name": "f"}, ([1],), ((123,),), "f"),  # lines of JSON
        ({"inputs": ["1"], "outputs": ['"123"'], "fn_name": "f"}, ([1],), (("123",),), "f"),
    ],
)
def test_layouts_of_cases(reference: Any, inputs: Any, outputs: Any, function: str | None) -> None:
    tests = read_tests(reference)
    assert (tests.inputs, tests.outputs, tests.function, tests.asserts) == (inputs, outputs, function, ())


def test_layouts_of_asserts() -> None:
    mbpp = read_tests({"test_list": ["assert f(1)", "assert f(2)"], "test_setup_code": "import math", "text": "x"})
    assert (mbpp.asserts, mbpp.setup) == (("assert f(1)", "assert f(2)"), "import math")
    plus = read_tests({"test_list": ["assert f(1)"], "test_imports": ["import a", "import b"]})
    assert plus.setup == "import a\nimport b"
    assert read_tests({"assert_case": ["assert f(1)"]}).asserts == ("assert f(1)",)
    assert read_tests({"test": "assert f(1)"}).asserts == ("assert f(1)",)
    human_eval = read_tests({"test": HUMAN_EVAL, "entry_point": "add", "prompt": "def add"})
    assert (human_eval.asserts, human_eval.names) == (
        (HUMAN_EVAL,),
        ProgramNames(free=(), tested=((),), candidate="add"),
    )
    assert read_tests({"test_list": ["a", "b", "c"]}).first(2).asserts == ("a", "b")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("x", "not JSON"),
        (3, "must be an object"),
        ({}, "must have `inputs` and `outputs`"),
        ([], "no test cases"),
        ({"inputs": [], "outputs": []}, "no test cases"),
        ({"inputs": ["1"], "outputs": []}, "same length"),
        ({"inputs": [1], "outputs": ["2"]}, "texts or lists of lines"),
        ({"inputs": ["x"], "outputs": ["2"], "fn_name": "f"}, "an input is not JSON"),
        ({"inputs": [1], "outputs": ["2"], "fn_name": "f"}, "list of arguments"),
        ([{"input": "1"}], "`input` and `output`"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "need `fn_name`"),
        ({"test_list": [1]}, "must be texts"),
        ({"test_list": ["assert f("]}, "the tests cannot be used: SyntaxError"),
        ({"test_list": ["assert f(1)"], "test_setup_code": "x = "}, "the tests cannot be used: SyntaxError"),
        ({"test_list": ["assert True"]}, "call no function of the program"),
        ({"test_list": ["assert math.pow(2, 3) == 8"], "test_setup_code": "import math"}, "call no function"),
        ({"test": HUMAN_EVAL}, "Give the function's name as `entry_point`"),
        ({"test": HUMAN_EVAL, "entry_point": "Solution().f"}, "`entry_point` must be the name of a function"),
        ({"test_list": ["assert abs(pow(2, 0.5) - 1.4) < 0.1"]}, "which of the functions abs, pow is the program's"),
        ({"test_list": ["assert set(sum([1])) == set([1])"]}, "Give its name as `entry_point`"),
        ({"inputs": ["1"], "outputs": ["x" * (5 << 20)]}, "longer than"),
    ],
)
def test_references_that_make_no_sense(reference: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tests(reference)


@pytest.mark.parametrize(
    ("tests", "fields", "free", "tested"),
    [
        (["assert pow(2, 3) == 8"], {}, [], [["pow"]]),
        (["assert sorted(f(1)) == [1]"], {}, ["f"], [[]]),
        (["assert pow(f(1), 2) == 4"], {}, ["f"], [[]]),
        (["assert pow(2, 3) == 8"], {"entry_point": "pow"}, [], [["pow"]]),
        (["assert sorted(g(1)) == [1]"], {"entry_point": "g"}, ["g"], [["g"]]),
        (["assert sum([1]) == 1", "assert sum(range(3)) == 3"], {}, [], [["sum"], ["sum"]]),
        (["assert max(1, 2) == 2", "assert min(1, 2) == 1"], {}, [], [["max"], ["min"]]),
        (["assert f(1) == 1", "assert pow(2, 3) == 8"], {}, ["f"], [[], ["pow"]]),
        (["x = f(1)", "assert sorted(x) == [1]", "print('passed')"], {}, ["f"], [[], [], []]),
        (["assert list(zip([1], [2])) == [(1, 2)]"], {}, [], [["list", "zip"]]),
        (["assert [1] == list(map(str, [1]))"], {}, [], [["list", "map", "str"]]),
        (["assert g() == 1", "g = lambda: f(x=[y for y in z])"], {}, ["f", "z"], [[], []]),
        (["def f(x):\n return g(x)\nassert f(1)"], {}, ["g"], [[]]),
        (["def test():\n assert pow(2, 3) == 8\ntest()"], {}, [], [["pow"]]),
        (["x = [2, 1]\nassert sorted(x) == [1, 2]"], {}, [], [["sorted"]]),
        (["assert sorted(x) == [1, 2]"], {"test_setup_code": "x = [2, 1]"}, [], [["sorted"]]),
        (["assert isclose(pow(2, 3), 8)"], {"test_setup_code": "from math import isclose"}, [], [["pow"]]),
        (["def pow(a, b): return 8\nassert f(1) == pow(2, 3)"], {}, ["f"], [[]]),
        (["def test():\n h = 1\n assert f(h)\ntest()"], {}, ["f"], [[]]),
        (["def test(add):\n return add\nassert add(test(1))"], {}, ["add"], [[]]),
    ],
)
def test_names_of_the_program_in_asserts(
    tests: list[str], fields: dict[str, str], free: list[str], tested: list[list[str]]
) -> None:
    names = read_tests({"test_list": tests, **fields}).names
    assert names == ProgramNames(free=tuple(free), tested=tuple(map(tuple, tested)))


def test_a_builtin_as_candidate_stays_a_builtin_in_the_tests() -> None:
    names = read_tests({"test": HUMAN_EVAL, "entry_point": "sorted"}).names
    assert names == ProgramNames(free=(), tested=((),), candidate="sorted")


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1 \n2", "1\n2", True),
        ("1.0 2", "1 2.00", True),
        ("yes", "Yes", False),
        ("1\n\n2", "1\n2", False),
        ("1 2", "1\n2", False),
        ("0.30000000000000004", "0.3", True),
        ("0.3001", "0.3", False),
        ("3e8", "299999999.5", True),
        ("3", "2.9999999", True),
        ("2.9999999", "3", False),  # an integer is exact
        ("1234568", "1234567", False),
        ("3.0", "3", True),
        ("1_000", "1000", False),
        ("1000", "1_000", False),
        ("\u0663", "3", False),
        ("\u0663.\u0660", "3.0", False),
        ("\uff13", "3", False),
        ("0010", "10", False),
        ("10.0", "0010", False),
        ("1\u00a02", "1 2", False),
        ("\u20031", "1", False),
        ("1\r\n2\t\r\n\n", "1\n2", True),
        ("inf", "Infinity", False),
        ("1e400", "2e400", False),
        ("1e99999999999999999999", "1.0", False),
        (".5 5.", "0.5 5", True),
        ("x1.0", "x1", False),
        ("nan", "nan", True),  # the same text
        ("NaN", "nan", False),
        ("sNaN", "1", False),
        ("", "", True),
        ("1e5 x", "100000 x", True),
    ],
)
def test_outputs(got: str, wanted: str, same: bool) -> None:
    assert same_output(got, wanted) is same


VALUES = [
    1,
    -(2**70),
    1.5,
    True,
    None,
    "a",
    b"a",
    [1, [2]],
    (1, 2),
    {1, 2},
    {"a": [1], 2: None},
    1j,
    [],
    {},
    float("inf"),
]


def test_plain_values_travel_unchanged() -> None:
    for value in VALUES:
        got = decode(json.loads(json.dumps(encode(value))))
        assert got == value
        assert type(got) is type(value)
    hidden = decode(json.loads(json.dumps(encode([object()]))))
    assert hidden != [hidden[0].__class__()]
    with pytest.raises(UnsupportedError, match="passes object"):
        encode([object()], strict=True)

    class Always(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert decode(encode(Always(3))) != 4


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [
        (3, 3, True),
        (3.0, 3, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (1.0, True, False),
        ("123", "123", True),
        (123, "123", False),
        ("123", 123, False),
        ("1.0", 1.0, False),
        (1 / 3, 0.3333333333, True),
        (0.3334, 0.3333333333, False),
        (1e9 + 0.5, 1e9, True),
        (3, 2.9999999, True),
        (2.9999999, 3, False),
        (1234568, 1234567, False),
        ([1 / 3, {"a": (2 / 3,)}], [0.3333333333, {"a": [0.6666666667]}], True),
        ([1 / 3], [0.34], False),
        ([[True]], [[1]], False),
        (float("nan"), float("nan"), True),
        ([float("nan")], [float("nan")], True),
        (float("inf"), float("inf"), True),
        (float("inf"), 1.7e308, False),
        (-float("inf"), float("inf"), False),
        (10**400, 1.5, False),
        (10**400, 10**400, True),
        (1j, 1, False),
        (b"a", "a", False),
        ("", None, False),
        ((1, [2]), [1, [2]], True),
        ([1], [1, 2], False),
        ([1, 2], [2, 1], False),
        ({"a": (1,)}, {"a": [1]}, True),
        ({1: 2}, {"1": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ({1, 2}, [1, 2], False),
        (None, None, True),
        (None, False, False),
        ("[1]", [1], False),
        ([], {}, False),
        ({}, [], False),
        (float("nan"), 1, False),
        (object(), 1, False),
        (2**80, 2**80, True),
    ],
)
def test_values(value: Any, wanted: Any, same: bool) -> None:
    assert same_value(json.loads(json.dumps(encode(value))), wanted) is same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


def spoilt(value: Any) -> Any:
    """The same value with its first leaf of another type, or changed by one."""
    if isinstance(value, list) and value:
        return [spoilt(value[0]), *value[1:]]
    if isinstance(value, dict) and value:
        key = next(iter(value))
        return {**value, key: spoilt(value[key])}
    if isinstance(value, bool) or value is None:
        return int(bool(value))
    if isinstance(value, int):
        return value + 1
    return str(value) if isinstance(value, float) else [value]


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@given(value=JSON)
def test_a_value_equals_itself_and_no_spoilt_copy(value: Any) -> None:
    for got in (value, as_tuples(value)):
        assert same_value(json.loads(json.dumps(encode(got))), json.loads(json.dumps(value)))
    assert not same_value(json.loads(json.dumps(encode(spoilt(value)))), json.loads(json.dumps(value)))


def run_filter(
    machine: str, call: str, argument: int = 0, second: int = 0, arch: int | None = None, number: int | None = None
) -> int:
    """A small interpreter of the few instructions that are used."""
    own_arch, calls = MACHINES[machine]
    words = {0: calls[call] if number is None else number, 4: own_arch if arch is None else arch}
    words |= {16: argument, 24: second}
    steps = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    at, value = 0, 0
    while True:
        op, if_true, if_false, operand = steps[at]
        at += 1
        if op == 0x20:
            value = words[operand]
        elif op == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[op]
            at += if_true if holds else if_false


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_forbids_what_it_lists_and_nothing_else(machine: str) -> None:
    calls = MACHINES[machine][1]
    by_argument = {"clone", "clone3", "prctl", "fcntl"}
    assert {"io_setup", "io_uring_setup", "setsockopt", "vmsplice", "inotify_init1", "mq_open"} <= calls.keys()
    assert {run_filter(machine, name) for name in calls.keys() - by_argument} == {EPERM}
    assert run_filter(machine, "clone3") == ENOSYS
    assert run_filter(machine, "clone", 17) == EPERM
    assert run_filter(machine, "clone", 0x3D0F00) == ALLOW  # flags of a thread
    assert run_filter(machine, "prctl", 1) == EPERM
    assert run_filter(machine, "prctl", 15) == ALLOW
    assert run_filter(machine, "fcntl", 1, 1031) == EPERM  # F_SETPIPE_SZ
    assert run_filter(machine, "fcntl", 1031, 1032) == ALLOW
    assert {run_filter(machine, "", number=n) for n in set(range(500)) - set(calls.values())} == {ALLOW}
    assert run_filter(machine, "clone", arch=0x40000003) == KILL
    if machine == "x86_64":
        assert run_filter(machine, "", number=0x40000001) == EPERM


def test_other_machines_have_no_filter() -> None:
    with pytest.raises(ValueError, match="no seccomp filter for riscv64"):
        filter_program("riscv64")


@pytest.mark.parametrize("root", [True, False])
def test_the_command_shuts_everything_out(root: bool) -> None:
    words = sandbox.bwrap_arguments(root=root)
    for option in ("user", "ipc", "pid", "net", "uts"):
        assert f"--unshare-{option}" in words
    assert {"--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert not {"--bind", "--share-net", "--proc", "--dev"} & set(words)
    added = [words[i + 1] for i, word in enumerate(words) if word == "--cap-add"]
    assert added == (["CAP_SETUID", "CAP_SETGID"] if root else [])
    bound = [words[i + 1] for i, word in enumerate(words) if word == "--ro-bind"]
    assert bound
    assert set(bound) <= set(sandbox.runtime_paths())
    assert not {"/", "/usr", "/etc", "/home", "/root"} & set(bound)
    # Nothing is mounted after the root is read-only.
    last = len(words) - 1 - words[::-1].index("--remount-ro")
    assert words[last + 1] == "/"
    assert not any(word in words[last:] for word in ("--tmpfs", "--ro-bind", "--dev-bind", "--dir", "--symlink"))


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.problem.cache_clear()
    yield
    sandbox.problem.cache_clear()


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_bubblewrap_nothing_is_run() -> None:
    said = cannot_run("code")
    assert said is not None
    assert said.startswith("bubblewrap (bwrap) is not installed. Install bubblewrap 0.8 or newer (`apt install")
    assert "kernel.unprivileged_userns_clone=1" in said
    with pytest.raises(sandbox.SandboxError, match="not installed"):
        code("print(1)", {"inputs": [""], "outputs": ["1"]})
    assert cannot_run("exact") is None


@pytest.mark.usefixtures("no_bubblewrap")
def test_a_run_without_bubblewrap_is_refused_before_it_starts() -> None:
    from launch.run.preflight import check_model
    from maxpo.configure.loading import load_config
    from maxpo.errors import InputError

    config = load_config([Path("configs/presets/demo.yaml")], ["reward.verifier=code", "reward.timeout_s=92"]).config
    with pytest.raises(InputError, match=r"verifier code: bubblewrap \(bwrap\) is not installed\. Install"):
        check_model(config)


def test_bubblewrap_that_may_make_no_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: str(fake))
    with pytest.raises(sandbox.SandboxError, match="does not start: bwrap: No permissions to create new namespace"):
        code("print(1)", {"inputs": [""], "outputs": ["1"]})


def messages(*, timeout_s: float, verifier: str = "code", **limits: Any) -> str:
    config = Config()
    config.reward = RewardConfig(verifier=verifier, timeout_s=timeout_s, **limits)
    return " ".join(str(problem) for problem in check(config, {}) if problem.key.startswith("reward"))


def test_limits_must_fit_into_the_time_of_an_answer() -> None:
    assert "reward.timeout_s must be at least" in messages(timeout_s=91.9)
    assert "reward.timeout_s must be at least" in messages(timeout_s=5, verifier="code_unsafe_no_sandbox")
    assert messages(timeout_s=92) == ""
    assert messages(timeout_s=5, verifier="exact") == ""
    assert messages(timeout_s=17, code_case_s=1, code_max_cases=5) == ""
    assert "more than 0" in messages(timeout_s=92, code_case_s=0)
    assert "Must be 1 to" in messages(timeout_s=92, code_max_cases=0)
    assert "at least 0 and below 1" in messages(timeout_s=92, code_float_tolerance=1)
    assert "Python itself" in messages(timeout_s=92, code_memory_mib=64)


UNSAFE = cannot_run("code_unsafe_no_sandbox")


@pytest.mark.skipif(UNSAFE is not None, reason=str(UNSAFE))
class TestWithoutTheSandbox:
    """The driver, under the name that says that nothing is isolated; with programs that do no harm."""

    @pytest.mark.parametrize(
        ("program", "reference", "passed", "ran"),
        [
            ("print(int(input()) + 1)", {"inputs": ["1\n", "2"], "outputs": ["2", "4"]}, 0.5, 1),
            ("print(open('/dev/stdin').read())", {"inputs": ["1"], "outputs": ["1"]}, 1, 1),
            ("import sys\nprint(sys.stdin.read())\nexit()", {"inputs": ["é\n"], "outputs": ["é"]}, 1, 1),
            ("print(1)\nraise SystemExit(3)", {"inputs": [""], "outputs": ["1"]}, 0, 0),
            ("if __name__ == '__main__': print(1)", {"inputs": [""], "outputs": ["1"]}, 1, 1),
            (
                "def f(a: List[int]): print(9); return sum(a)",
                {"inputs": [[[1, 2]]], "outputs": [3], "fn_name": "f"},
                1,
                1,
            ),
            ("class Solution:\n def f(self, a): return a", {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}, 1, 1),
            ("def f(n): return 1 / n", {"inputs": [[0], [1]], "outputs": [0, 1], "fn_name": "f"}, 0.5, 0),
            (
                "def f(n): return (n, {n})",
                {"test_list": ["assert f(1) == (1, {1})", "assert f(1) == [1, {1}]"]},
                0.5,
                1,
            ),
            ("def add(n, by): return n + by", {"test": HUMAN_EVAL, "entry_point": "add"}, 1, 1),
            ("def add(n, by): return n - by", {"test": HUMAN_EVAL, "entry_point": "add"}, 0, 1),
            ("def f(n): 1 / 0", {"test_list": ["f(1)", "assert f(1) == 2"]}, 0, 0),
            # A function that is named as a builtin is the program's, or missing.
            ("x = 1", {"test_list": ["assert pow(2, 3) == 8"]}, 0, 0),
            ("def pow(a, b): return a ** b", {"test_list": ["assert pow(2, 3) == 8"]}, 1, 1),
            ("def sum(a, b): return 6", {"test_list": ["assert sum(10, 15) == 6", "assert sum(1, 2) == 3"]}, 0.5, 1),
            ("x = 1", {"test_list": ["assert sorted([2, 1]) == [1, 2]"] * 2}, 0, 0),
            ("x = 1", {"test_list": ["assert print('a') is None"]}, 0, 0),
            ("def print(a): return None", {"test_list": ["assert print('a') is None"]}, 1, 1),
            ("x = 1", {"test_list": ["assert list(zip([1], [2])) == [(1, 2)]"]}, 0, 0),
            ("def zip(a, b): return [(1, 2)]", {"test_list": ["assert list(zip([1], [2])) == [(1, 2)]"]}, 1, 1),
            ("def list(x): return 1", {"test_list": ["assert list(zip([1], [2])) == [(1, 2)]"]}, 0, 0),
            ("x = 1", {"test": "def check(candidate):\n assert candidate([1]) == 1", "entry_point": "max"}, 0, 0),
            ("def max(a): return 1", {"test": "def check(c):\n assert c([1]) == 1", "entry_point": "max"}, 1, 1),
            ("def max(a): return 2", {"test": "def check(c):\n assert c([1]) == 1", "entry_point": "max"}, 0, 1),
            ("x = 1", {"test_list": ["assert pow(2, 3) == 8"], "test_setup_code": "from math import *"}, 0, 0),
            ("x = 1", {"test_list": ["assert isclose(pow(2, 3), 8)"], "test_setup_code": "from math import *"}, 0, 1),
            ("def f(x): return x", {"test_list": ["assert f(1) == 1", "assert pow(2, 3) == 8"]}, 0.5, 0),
            ("def f(x): return x", {"test_list": ["assert f(1) == 1", "print('passed')"]}, 1, 1),
            # Builtins that look at values of the program stay Python's, whatever the program defines.
            ("def f(x): return x", {"test_list": ["assert sorted(f([2, 1])) == [1, 2]"]}, 1, 1),
            (
                "def f(x): return 5\ndef set(x): return 0",
                {"test_list": ["assert set([f(1)]) == set([2])"]},
                0,
                1,
            ),
            (
                "def sorted(a): return 0",
                {"test": "def check(c):\n assert sorted(c(1)) == sorted([1])", "entry_point": "sorted"},
                0,
                0,
            ),
            # Neither do imports stand in for a missing function, nor tests that expect any error.
            ("x = 1", {"inputs": [[12, 18]], "outputs": [6], "fn_name": "gcd"}, 0, 0),
            ("x = 1", {"test_list": ["assert gcd(12, 18) == 6"]}, 0, 0),
            ("from math import gcd", {"inputs": [[12, 18]], "outputs": [6], "fn_name": "gcd"}, 1, 1),
            ("x = 1", {"test_list": ["try:\n f(1)\nexcept Exception:\n pass"]}, 0, 0),
            ("def f(x: return", {"test_list": ["try:\n f(1)\nexcept Exception:\n pass"]}, 0, 0),
            ("def f(x): 1 / 0", {"test_list": ["try:\n f(1)\nexcept ZeroDivisionError:\n pass"]}, 1, 1),
            ("x = 1", {"test_setup_code": "r = Node(1)", "test_list": ["assert f(r) == 1"]}, 0, 0),
            ("def f(x): return f\ndef g(x): return 1", {"test_list": ["assert g(f(1)) == 1"]}, 0, 0),
            # Returned values are compared by type.
            ("def f(x): return '123'", {"inputs": [[1]], "outputs": ["123"], "fn_name": "f"}, 1, 1),
            ("def f(x): return 123", {"inputs": [[1]], "outputs": ["123"], "fn_name": "f"}, 0, 1),
            ("def f(x): return 1 / 3", {"inputs": [[1]], "outputs": [0.3333333333], "fn_name": "f"}, 1, 1),
            ("def f(x): return True", {"inputs": [[1]], "outputs": [1], "fn_name": "f"}, 0, 1),
            ("print('1_000')", {"inputs": [""], "outputs": ["1000"]}, 0, 1),
            ("print(chr(0x663))", {"inputs": [""], "outputs": ["3"]}, 0, 1),
            ("print(1 / 3)", {"inputs": [""], "outputs": ["0.333333333"]}, 1, 1),
            # Nothing of the driver is in the program: neither its names and modules, nor `from __future__` of it.
            ("def g(x: int): 0\ndef f(x): return g.__annotations__['x'] is int", {"test_list": ["assert f(1)"]}, 1, 1),
            ("def g(x: int): 0\nprint(g.__annotations__['x'] is int)", {"inputs": [""], "outputs": ["True"]}, 1, 1),
            ("import sys\nprint([m for m in sys.modules if 'maxpo' in m])", {"inputs": [""], "outputs": ["[]"]}, 1, 1),
            ("print([n for n in globals() if n[0] != '_'])", {"inputs": [""], "outputs": ["[]"]}, 1, 1),
            ("def f(x): return __name__", {"inputs": [[1]], "outputs": ["solution"], "fn_name": "f"}, 1, 1),
            ("def f(x): return __name__ != '__main__'", {"test_list": ["assert f(1)"]}, 1, 1),
        ],
    )
    def test_programs(self, program: str, reference: Any, passed: float, ran: float) -> None:
        score = code_unsafe_no_sandbox(program, reference)
        assert score.parts == {"passed": passed, "ran": ran}
        assert score.reward == float(passed == 1)

    @pytest.mark.parametrize(
        "test", ["assert f(object())", "assert f(", "def", "import numpy_is_not_here\nassert f(1)"]
    )
    def test_tests_that_cannot_be_run_are_no_fault_of_the_program(self, test: str) -> None:
        with pytest.raises(ValueError, match="code: "):
            code_unsafe_no_sandbox("def f(x): return x", {"test_list": [test]})

    def test_the_tolerance_is_a_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verifier, "_limits", RewardConfig(code_float_tolerance=0.01))
        reference = {"inputs": [[1]], "outputs": [0.31], "fn_name": "f"}
        assert code_unsafe_no_sandbox("def f(x): return 1 / 3", reference).reward == 0  # 0.023 off
        assert code_unsafe_no_sandbox("print(1 / 3)", {"inputs": [""], "outputs": ["0.331"]}).reward == 1

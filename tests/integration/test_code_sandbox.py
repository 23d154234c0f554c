"""Programs that nobody has read, judged in the sandbox through the verifier pool."""

from __future__ import annotations

import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from maxpo.config import RewardConfig
from maxpo.rewards.code.verifier import cannot_run
from maxpo.types import Group, Prompt
from rollout.scoring.verifier_pool import RewardPool
from tests.fakes import completion
from tests.hostile.programs import BOMBS, FORGERIES, PROBES

PROBLEM = cannot_run("code")
if PROBLEM is not None:
    pytest.skip(f"the sandbox does not work here: {PROBLEM}", allow_module_level=True)

CONFIG = RewardConfig(
    verifier="code", workers=2, timeout_s=25.0, code_case_s=1.5, code_memory_mib=512, code_max_cases=4
)
SQUARES = {"test_list": ["assert f(3) == 9", "assert not f(4) != 16", "x = f(5)\nassert x in [25]"]}
CALLS = {"fn_name": "f", "inputs": [[3], [4]], "outputs": [9, 16]}


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    """A port on which somebody listens, and a file that anybody may read: what a program must not reach."""
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        secret = Path(folder, "secret")
        secret.write_text("expected-elsewhere")
        secret.chmod(0o644)
        Path(folder).chmod(0o777)
        yield f"{server.getsockname()[1]}\n{secret}\n"


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    before = sandboxes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAXPO_SECRET", "x")
        pool = RewardPool(CONFIG, 64)
        judge(pool, "print(1)", {"inputs": [""], "outputs": ["1"]})  # start-up is no part of the limits
    yield pool
    pool.shutdown()
    assert eventually(lambda: not sandboxes() - before)
    places = [Path(tempfile.gettempdir()), Path("/dev/shm"), Path.cwd()]
    assert [str(p) for place in places for p in place.glob("*hostile-*")] == []


def sandboxes() -> set[int]:
    """Processes of this test's sandboxes, those that have lost their parent included."""
    drivers: dict[int, set[int]] = {}
    for process in psutil.process_iter(["cmdline"]):
        if any("maxpo.rewards.code.driver" in word for word in process.info["cmdline"] or []):
            drivers[process.pid] = ancestors(process)
    # Tests that run at the same time have sandboxes of their own, below other processes.
    return {pid for pid, above in drivers.items() if os.getpid() in above or above <= {0, 1, *drivers}}


def ancestors(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.NoSuchProcess:
        return set()


def eventually(holds: Callable[[], Any], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


Verdict = tuple[str, float, dict[str, float]]


def judge_all(pool: RewardPool, programs: dict[str, str], reference: Any) -> dict[str, Verdict]:
    prompt = Prompt(prompt_id="p", text="p", token_ids=(1,), reference=reference, source="test")
    scored = pool.score([Group(prompt=prompt, completions=(completion(text),)) for text in programs.values()])
    return {
        name: (s.outcomes[0], s.rewards[0], {part: values[0] for part, values in s.reward_parts.items()})
        for name, s in zip(programs, scored, strict=True)
    }


def judge(pool: RewardPool, program: str, reference: Any) -> Verdict:
    return judge_all(pool, {"it": program}, reference)["it"]


def some(programs: dict[str, str], size: int = 6) -> list[Any]:
    """A few programs a test, so that both processes are busy."""
    names = list(programs)
    parts = [names[i : i + size] for i in range(0, len(names), size)]
    return [pytest.param({name: programs[name] for name in part}, id=f"{part[0]}..{part[-1]}") for part in parts]


def held(outside: str) -> dict[str, Any]:
    """The first case is the task; the second is there to be looked for, and may not be met."""
    return {"inputs": [outside, outside], "outputs": ["held", "expected-elsewhere"]}


@pytest.fixture
def nothing_is_left(pool: RewardPool) -> Iterator[None]:
    yield
    # Other tests on this machine may have sandboxes of their own, but not for long.
    assert eventually(lambda: not sandboxes()), "processes are left"
    started = time.monotonic()
    assert judge(pool, "print(int(input()) + 1)", {"inputs": ["1"], "outputs": ["2"]})[:2] == ("ok", 1.0)
    assert time.monotonic() - started < 8, "the next program had to wait"


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("programs", some(PROBES))
def test_what_programs_try_is_refused(pool: RewardPool, outside: str, programs: dict[str, str]) -> None:
    verdicts = judge_all(pool, programs, held(outside))
    assert verdicts == dict.fromkeys(programs, ("ok", 0.0, {"passed": 0.5, "ran": 1.0}))


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("programs", some(BOMBS))
def test_programs_that_do_harm_get_nothing_and_end_in_time(
    pool: RewardPool, outside: str, programs: dict[str, str]
) -> None:
    started = time.monotonic()
    verdicts = judge_all(pool, programs, held(outside))
    assert time.monotonic() - started < 5 * len(programs)
    assert {n: (o, r, p["passed"]) for n, (o, r, p) in verdicts.items()} == dict.fromkeys(programs, ("ok", 0.0, 0.0))


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("tests", [SQUARES, CALLS], ids=["asserts", "calls"])
@pytest.mark.parametrize("programs", some(FORGERIES))
def test_no_program_can_say_that_it_has_passed(
    pool: RewardPool, tests: dict[str, Any], programs: dict[str, str]
) -> None:
    verdicts = judge_all(pool, programs, tests)
    assert {n: (o, r, p["passed"]) for n, (o, r, p) in verdicts.items()} == dict.fromkeys(programs, ("ok", 0.0, 0.0))


@pytest.mark.parametrize("tests", [SQUARES, CALLS], ids=["asserts", "calls"])
def test_honest_programs_pass(pool: RewardPool, tests: dict[str, Any]) -> None:
    assert judge(pool, "def f(n):\n    return n * n", tests) == ("ok", 1.0, {"passed": 1.0, "ran": 1.0})


def test_slow_programs_are_stopped_after_the_case_that_took_too_long(pool: RewardPool) -> None:
    program = "import time\nn = int(input())\ntime.sleep(60 if n == 1 else 0)\nprint(n)"
    assert judge(pool, program, {"inputs": ["0", "1", "2"], "outputs": ["0", "1", "2"]}) == (
        "ok",
        0.0,
        {"passed": 1 / 3, "ran": 0.0},
    )


KILLED = """
import sys
from maxpo.config import RewardConfig
from maxpo.rewards.code.sandbox import Sandbox
program = "import time; time.sleep(100)"
with Sandbox("stdin", RewardConfig(code_case_s=120), unsafe=sys.argv[1] == "unsafe", code=program, cases=[""]) as box:
    print("ready", flush=True)
    box.frame(120)
"""


@pytest.mark.parametrize("mode", ["safe", "unsafe"])
def test_programs_die_with_the_process_that_judges_them(mode: str) -> None:
    before = sandboxes()
    with subprocess.Popen([sys.executable, "-c", KILLED, mode], stdout=subprocess.PIPE) as judging:
        assert judging.stdout is not None
        assert judging.stdout.readline() == b"ready\n"
        started = sandboxes() - before - {judging.pid}
        # bubblewrap, the driver, which is the first process of the sandbox, and the program; without it the last two.
        assert eventually(lambda: len(sandboxes() - before - {judging.pid}) == (3 if mode == "safe" else 2)), started
        os.kill(judging.pid, signal.SIGKILL)
    assert eventually(lambda: not sandboxes() - before)


ORPHANS = """
import ctypes, psutil
from maxpo.rewards.code.verifier import code
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here, and this process reaps none
assert code("print(input())", {"inputs": ["1", "2"], "outputs": ["1", "2"]}).reward == 1
assert code("import time; time.sleep(9)", {"inputs": ["1"], "outputs": ["2"]}).reward == 0
assert code("import os; os.kill(os.getppid(), 9)", {"inputs": ["1"], "outputs": ["2"]}).reward == 0
for _ in range(3):
    assert code("def f(x): return x", {"test_list": ["assert f(1) == 1"]}).reward == 1
print([child.name() for child in psutil.Process().children(recursive=True)])
"""


def test_no_zombies_are_left_where_nobody_reaps_orphans() -> None:
    ran = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=100)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_the_job_has_no_expected_output(monkeypatch: pytest.MonkeyPatch) -> None:
    import maxpo.rewards.code.sandbox as sandbox
    from maxpo.rewards.code.verifier import code

    seen: list[bytes] = []
    original = marshal.dumps

    def dumps(value: Any) -> bytes:
        seen.append(original(value))
        return seen[-1]

    monkeypatch.setattr(sandbox.marshal, "dumps", dumps)
    assert code("print(input())", {"inputs": ["here"], "outputs": ["elsewhere"]}).reward == 0
    assert code("def f(x): return x", {"inputs": [["here"]], "outputs": ["elsewhere"], "fn_name": "f"}).reward == 0
    assert len(seen) == 2
    assert all(b"here" in job and b"elsewhere" not in job for job in seen)

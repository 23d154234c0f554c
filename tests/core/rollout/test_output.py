"""The reason for the end of a worker, in one line and without colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from maxpo.runtime.ray_calls import failure, told
from maxpo.wording import reason
from rollout.vllm_engine.output import last_error, with_last_error

TRACEBACK = (
    "\x1b[36mray::RolloutWorker.generate()\x1b[39m (pid=7, ip=127.0.0.1, actor_id=3f)\n"
    + "".join(f'  File "/somewhere/{i}.py", line {i}, in function_{i}\n    call_{i}()\n' for i in range(40))
    + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\nSee above."
)
OUTPUT = """
\x1b[36m(EngineCore_DP0 pid=3)\x1b[0;0m ERROR 11-27 10:00:00 [core.py:9] Traceback (most recent call last):
(EngineCore_DP0 pid=3) ERROR 11-27 10:00:00 [core.py:9]   File "x.py", line 3, in step
\x1b[36m(EngineCore_DP0 pid=3)\x1b[0;0m ERROR 11-27 [core.py:9] RuntimeError: a prompt of 5 tokens was cut in two
ERROR 11-27 10:00:01 [async_llm.py:7] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
"""


def test_the_end_of_a_traceback_is_shown_and_not_its_head() -> None:
    said = told(RuntimeError(TRACEBACK), None, 7)
    assert said.startswith(
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See above. (its"
    )
    assert "\x1b" not in str(failure("rollout worker 0", "sampling", RuntimeError(TRACEBACK)))
    assert "EngineDeadError" in str(failure("rollout worker 0", "sampling", RuntimeError(TRACEBACK)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no space left", "no space left"),
        ("The actor died.\n\tclass_name: A\n\tpid: 3", "The actor died. class_name: A pid: 3"),
        ("", ""),
        ("x" * 1000, "x" * 397 + "..."),
        ("Traceback (most recent call last):\n  File 'a', line 1\n", "File 'a', line 1"),
    ],
)
def test_other_texts_keep_their_beginning(text: str, shown: str) -> None:
    assert reason(text) == shown


def test_the_last_error_that_tells_a_reason_is_found(tmp_path: Path) -> None:
    file = tmp_path / "worker.err"
    file.write_text("x\n" * 10**6 + OUTPUT)
    assert last_error(file) == "RuntimeError: a prompt of 5 tokens was cut in two"
    file.write_text("ERROR [x.py:3] vllm.EngineDeadError: see above\n")
    assert last_error(file) is None
    assert last_error(tmp_path / "nowhere") is None
    assert last_error(Path("/dev/null")) is None


def test_an_engine_says_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker.err"
    file.write_text(OUTPUT)
    monkeypatch.setattr(last_error, "__defaults__", (file,))
    assert with_last_error("it died") == "it died: RuntimeError: a prompt of 5 tokens was cut in two"

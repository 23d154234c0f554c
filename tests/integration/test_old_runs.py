"""A run folder that an earlier version wrote still resumes.

`tests/stored/run` was written by commit 66f1590, before the modules moved into folders: its settings, the checkpoint of
step 2, and `metrics.jsonl` of all four steps. `tests/stored/model` is a random Llama of 9,312 parameters.

The rows of steps 3 and 4 were written again when verifiers began to see special tokens: the reward of this run is a
length of texts, and its model samples `<unk>` and the like. With the former texts, the former figures came out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import maxpo

STORED = Path("tests/stored/run")


def figures(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without clock and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    volatile = ("time", "throughput", "memory", "pipeline")
    return [{key: value for key, value in row.items() if not key.startswith(volatile)} for row in rows]


def test_a_run_of_an_earlier_version_resumes_and_ends_with_the_same_figures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(STORED, run)
    done = maxpo("resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    got, want = figures(run), figures(STORED)
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for new, old in zip(got, want, strict=True):
        # Later versions may have further metrics, and `staleness/*` in place of this one.
        old.pop("completions/stale", None)
        assert {key: new[key] for key in old} == pytest.approx(old, rel=1e-4, abs=1e-6)
    assert (run / "policy" / "config.json").is_file()

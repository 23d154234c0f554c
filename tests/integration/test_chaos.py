"""A short real run, with groups in flight, under random kills of all its processes, and once of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.integration.commands import environment


def test_random_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--minutes", "0.5", "--mtbf", "6", "--seed", "1", "--learner"]
    command += ["--staleness", "2", "--compare", "0"]
    command += ["--out", str(tmp_path / "runs"), "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment())
    output = tmp_path / "runs" / "output.txt"
    said = output.read_text() if output.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + said[-5000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] >= 1
    assert report["groups"] == 16 * report["steps"]
    assert sum(report["kills"].values()) >= 3, report["kills"]
    assert report["kills"]["whole run"] == 1
    assert (report["groups_lost"], report["groups_doubled"], report["steps_missing_or_twice"]) == (0, 0, 0)
    assert report["answers_masked"] == 0
    assert report["staleness_max"] <= 2

"""`maxpo probe` with a real engine and a real learner."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.commands import SMALL, maxpo


def test_a_probe_of_the_demo(tmp_path: Path) -> None:
    words = ["probe", "configs/models/countdown-0.5m", "configs/presets/demo.yaml", f"run.dir={tmp_path}", *SMALL]
    done = maxpo(*words, "algorithm.group_size=8", "algorithm.k=2", "--groups", "12", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout)
    folder = tmp_path / "demo-probe"
    assert printed.pop("file") == str(folder / "probe.json")
    assert json.loads((folder / "probe.json").read_text()) == printed
    assert (printed["prompts"], printed["group_size"], printed["dimensions"]) == (6, 8, printed["parameters"])
    rows = {row["name"]: row for row in printed["estimators"]}
    assert rows["maxpo"]["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    # An estimator that trains on successes alone.
    assert 0 < rows["pkpo_loo_minus_one"]["trained"] < 0.5 * rows["maxpo"]["trained"]
    # (in_i - rho) is L2O times a constant, so its variance is L2O's times the square.
    scale = (1 - 2 / 8) / 2
    assert abs(rows["canonical"]["ratio"]["value"] / scale**2 - 1) < 1e-6
    assert len(list((folder / "rollouts").iterdir())) == 2
    done = maxpo(*words, "--groups", "12")
    assert done.returncode == 2
    assert "already holds probe.json" in done.stderr

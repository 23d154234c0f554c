"""What `maxpo probe` refuses and prints. `tests/integration/test_probe.py` runs it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launch.cli import main
from launch.terminal.probe import probe_tables
from maxpo.evaluation.figures import Estimate
from maxpo.evaluation.probe import EstimatorFigures, ProbeReport

MODEL, DEMO = "configs/models/countdown-0.5m", "configs/presets/demo.yaml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--groups", "5"], "--groups 5: must be an even number of at least 4"),
        (["--groups", "2"], "--groups 2: must be an even number of at least 4"),
        (["learner.zero_stage=3"], "needs zero_stage 0 to 2"),
        (["algorithm.advantage=pkpo_loo_minus_one", "algorithm.k=16"], "a probe compares with maxpo"),
    ],
)
def test_what_cannot_be_probed_is_told_before_anything_starts(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert main(["probe", MODEL, DEMO, f"run.dir={tmp_path}", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def figures(name: str, ratio: float) -> EstimatorFigures:
    around = Estimate(value=ratio, low=ratio - 0.1, high=ratio + 0.1)
    return EstimatorFigures(name=name, within=around, ratio=around, between=2.5, trained=0.25)


def test_the_tables_fit_a_terminal_and_compare_the_unbiased_only() -> None:
    report = ProbeReport(
        prompts=32,
        group_size=16,
        k=4,
        objective="max",
        dimensions=65536,
        parameters=134_515_008,
        estimators=tuple(
            figures(name, 0.75) for name in ("maxpo", "pkpo_loo_minus_one", "a/b.py:mine", "grpo", "floor")
        ),
        refused={"maxrl": "maxrl: its formula is for rewards of 0 and 1"},
        kappa=None,
        break_even=2.1,
        pass_rate=0.1,
        lam=Estimate(value=0.2, low=0.1, high=0.3),
        sizes={"maxpo": {8: 1.25, 16: 1.0}, "pkpo_loo_minus_one": {8: 0.5}},
        advice="",
    )
    out = io.StringIO()
    console = Console(file=out, width=80)
    for table in probe_tables(report):
        console.print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert cells["mine"] == ["mine", "0.75", "0.75", "[0.65,", "0.85]", "2.5", "25%"]
    assert cells["grpo"] == ["grpo", "0.75", "2.5", "25%"]
    assert "projected to 65,536 numbers" in out.getvalue()
    assert "left out  maxrl: its formula is for rewards of 0 and 1" in lines
    assert "not measured" in out.getvalue()

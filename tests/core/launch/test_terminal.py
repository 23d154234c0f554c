"""Lines that a run prints: the banner at the start, and one for each step."""

from __future__ import annotations

from io import StringIO
from math import isnan, nan
from pathlib import Path

import pytest
from rich.console import Console

from launch.run.wording import banner
from launch.terminal.progress import Terminal, timing
from maxpo.configure.loading import load_config
from maxpo.data.order import Mixture
from maxpo.loop.state import RunResult
from maxpo.types import Prompt

METRICS = {"reward/mean": 0.25, "groups/kept": 3.0, "groups/sampled": 4.0, "policy/entropy": 0.5, "time/step_s": 1.0}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "advantages maxpo with K = 4; "),
        *(
            ([f"algorithm.advantage={name}"], f"advantages {name} with K = 4; ")
            for name in ("canonical", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "passk_training")
        ),
        *(
            ([f"algorithm.advantage={name}"], f"advantages {name}; ")
            for name in ("rloo", "grpo", "dr_grpo", "maxrl", "top1_gap")
        ),
        (
            ["algorithm.k_schedule=linear", "algorithm.k_values=[6,1]"],
            "advantages maxpo with K from 6 to 1 in a straight line; ",
        ),
        (
            ["algorithm.k_schedule=stepwise", "algorithm.k_values=[6,4,1]", "algorithm.k_steps=[10,20]"],
            "advantages maxpo with K = 6, 4 from step 10, 1 from step 20; ",
        ),
        (
            ["algorithm.k_schedule=adaptive", "algorithm.k_values=[1,6]"],
            "advantages maxpo with K from 1 to 6 by each prompt's pass rate; ",
        ),
    ],
    ids=str,
)
def test_the_banner_says_which_k_the_run_uses(overrides: list[str], words: str) -> None:
    config = load_config([Path("configs/presets/demo.yaml")], overrides).config
    prompt = Prompt(prompt_id="1", text="a", token_ids=(1,), reference="", source="x")
    said = banner(config, Mixture([[prompt]], ["x"], [1]), [prompt])
    assert words in said
    assert said.endswith(
        "\n1 held-out prompts (all that there are: eval.prompts = 128) x 32 completions per evaluation"
    )
    assert "held-out" not in banner(config, Mixture([[prompt]], ["x"], [1]), [])


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"reward/max@4": 0.5}, "step 7  reward 0.250  max@4 0.500  kept 3/4  entropy 0.50  1.00 s ()\n"),
        ({}, "step 7  reward 0.250  kept 3/4  entropy 0.50  1.00 s ()\n"),
        ({"policy/entropy": nan}, "step 7  reward 0.250  kept 3/4  1.00 s ()\n"),
        (
            {"train/overflow_steps": 1.0, "train/loss_scale": 32768.0},
            "step 7  reward 0.250  kept 3/4  entropy 0.50  overflow: loss scale 32768  1.00 s ()\n",
        ),
    ],
)
def test_a_metric_that_is_absent_is_not_printed(metrics: dict[str, float], line: str) -> None:
    out = StringIO()
    present = {name: value for name, value in (METRICS | metrics).items() if not isnan(value)}
    Terminal(Console(file=out), steps=10, k=4).step_done(7, present)
    assert out.getvalue() == line


def test_a_stage_that_never_ran_has_a_dash_in_the_table() -> None:
    out = StringIO()
    steps = [{"time/generate_s": 1.0, "time/step_s": 2.0, "throughput/generate_tokens_per_s": 10.0}]
    Console(file=out, width=100).print(timing(RunResult(history=steps)))
    rows = {line.split()[1]: line.split()[3] for line in out.getvalue().splitlines() if line.startswith("│")}
    assert rows == {"generate": "1.00", "score": "-", "update": "-", "sync": "-", "confirm": "-", "step": "2.00"}

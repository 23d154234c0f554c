"""The simulated pipeline, its law and `maxpo plan --lengths`, on numbers small enough to compute by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from launch.cli import main
from launch.pipeline.gain import show_gain, store_mib
from launch.pipeline.law import Law
from launch.pipeline.measured import GivenTimes, Measured, measure
from launch.pipeline.simulation import Draw, Scenario, Simulation, lognormal, simulate
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import InputError

DEMO = Path("configs/presets/demo.yaml")
ONE = Scenario(workers=1, slots=4, prompts=1, samples=1, token_s=1, update_s=4, sync_s=1)
"""One engine, and one completion a step."""


def demo(*overrides: str) -> Config:
    return load_config([DEMO], overrides).config


def groups_of(*lengths: list[int]) -> Draw:
    """Groups with these lengths, again and again."""

    def endless() -> Iterator[list[int]]:
        while True:
            yield from lengths

    source = endless()
    return lambda groups: np.array([next(source) for _ in range(groups)])


def ends(scenario: Scenario, draw: Draw, steps: int) -> list[float]:
    simulation = Simulation(scenario, draw)
    return [simulation.step().ended_s for _ in range(steps)]


def test_completions_wait_for_free_slots() -> None:
    # Two slots: 1 then 2, and 3; the last begins at 3 s.
    scenario = replace(ONE, slots=2, prompts=2, samples=2, overcommit=4, score_s=0.5, update_s=10, sync_s=2)
    draw = groups_of([1, 3], [2, 2])
    assert ends(scenario, draw, 2) == [5 + 0.5 + 10 + 2, 2 * 17.5]
    filled = simulate(scenario, draw, 1).slots_filled
    assert filled == pytest.approx((1 + 3 + 2 + 2) / (2 * 17.5))


def test_sequences_beside_each_other_slow_a_step_down() -> None:
    scenario = replace(ONE, samples=2, token_s=0, sequence_s=1)
    assert ends(scenario, groups_of([1, 3]), 1) == [1 * 2 + 2 * 1 + 5]


def test_a_worker_holds_no_more_groups_than_its_slots() -> None:
    """With overcommit 1 the third group waits until a whole group has ended, although slots are free at 1 s."""
    scenario = replace(ONE, slots=2, prompts=3, samples=2)
    draw = groups_of([1, 9], [1, 9], [1, 1])
    assert scenario.held == 2
    # 9 and 1 until 1 s, 9 beside 1 until 2 s, 9 and 9 until 9 s, then the last group beside 9.
    assert ends(scenario, draw, 1) == [11 + 5]
    assert replace(scenario, overcommit=4).held == 5


def test_groups_go_to_the_worker_with_the_fewest() -> None:
    # 4 and 5 at the first, 1 and 1 at the second.
    scenario = replace(ONE, workers=2, slots=1, prompts=4)
    assert ends(scenario, groups_of([4], [1], [5], [1]), 1) == [9 + 5]


def test_the_next_batch_is_sampled_during_the_update() -> None:
    in_order = replace(ONE, staleness=1, lookahead=1)
    # 10 s for the first two groups. The third begins at 15 s, rests from 19 s to 20 s, and ends at 26 s.
    assert ends(in_order, groups_of([10]), 3) == [15, 20, 31]
    simulation = Simulation(in_order, groups_of([10]))
    # Seconds of filled slots: two groups at first, 4 s of the third, then its other 6 s and the fourth.
    assert [simulation.step().slot_s for _ in range(3)] == [20, 24, 40]


def test_a_lost_cache_is_computed_again_after_the_sync() -> None:
    scenario = replace(ONE, staleness=1, lookahead=1, prefill_tokens_per_s=2)
    # As above, and 4 tokens at 2 per second.
    assert ends(scenario, groups_of([10]), 3) == [15, 20, 33]


def test_a_drained_step_sends_weights_when_nothing_is_in_flight() -> None:
    scenario = replace(ONE, staleness=1, lookahead=1, drained=True)
    assert ends(scenario, groups_of([10]), 3) == [15, 15 + 10 + 1, 15 + 2 * 11]


def test_colocated_engines_rest_during_the_update() -> None:
    scenario = replace(ONE, staleness=1, lookahead=1, colocated=True)
    assert ends(scenario, groups_of([10]), 3) == [15, 20, 35]


def test_the_bound_is_kept_by_waiting_and_not_without_it() -> None:
    # One group in three is long: with first-finished batches it is overtaken as often as its length allows.
    scenario = replace(ONE, slots=64, update_s=1, sync_s=0, staleness=2, lookahead=1, overcommit=4)
    draw = groups_of([1], [1], [90])
    assert simulate(scenario, draw, 30).staleness_max == 2
    assert simulate(replace(scenario, bounded=False), draw, 90).staleness_max > 2


def test_lengths_are_the_same_for_every_size_of_a_draw() -> None:
    whole = lognormal(50, 1.0, 200, 3, seed=7)(10)
    source = lognormal(50, 1.0, 200, 3, seed=7)
    assert np.array_equal(np.concatenate([source(4), source(6)]), whole)
    assert whole.min() >= 1
    assert lognormal(50, 2.0, 200, 3, seed=7)(1000).max() == 200


def test_the_expected_longest_completion_of_a_step() -> None:
    law = Law(replace(ONE, prompts=2), np.array([2, 1]))
    assert (law.mean_length, law.longest) == (1.5, 1 / 4 + 2 * 3 / 4)
    assert Law(replace(ONE, prompts=100), np.array([5])).longest == 5


def test_the_law_without_waits() -> None:
    scenario = replace(ONE, slots=1000, prompts=20, samples=5, score_s=2, update_s=10, sync_s=3)
    law = Law(scenario, np.array([80]))
    assert law.full_s == 100 * 80 / 1000
    # From admission to the update of the last step that may train it: 80 + 2 + 10.
    assert [law.step_s(s, s) for s in (0, 1, 3, 8, 9)] == pytest.approx([92 + 3, 46 + 3, 23 + 3, 92 / 9 + 3, 10 + 3])
    assert law.useful_staleness() == 9
    # No group is faster than the slowest, so a smaller lookahead is a smaller bound.
    assert law.step_s(3, 1) == pytest.approx(46 + 3)
    assert law.lookahead(3) == 3


def test_the_law_with_waits_for_slots() -> None:
    scenario = replace(ONE, slots=10, prompts=2, samples=5, score_s=2, update_s=10, sync_s=3)
    law = Law(scenario, np.array([20]))
    # A step of 20 s fills all slots, and new completions wait up to 20 s: 20 + 20 + 2 + 10.
    assert law.least_s == 20
    assert law.useful_staleness() == 2
    assert law.step_s(2, 2) == pytest.approx(20 + 3)
    # In a step of T s 200 / T slots are filled, and as many completions wait, 2 s each: 400 / T + 32 = 2 T.
    assert law.step_s(1, 1) == pytest.approx(8 + (64 + 200) ** 0.5 + 3)


def test_few_long_groups_need_no_lookahead_for_all() -> None:
    """Of ten groups one is long. Nine are trained in the next step, and the long one with the bound."""
    scenario = replace(ONE, slots=10**6, prompts=10_000, samples=1, update_s=10, sync_s=0)
    law = Law(scenario, np.array([5] * 9 + [90]))
    assert law.step_s(9, 9) == pytest.approx(10)
    # (9 x 2 + 10) / 10 = 2.8 steps of groups.
    assert [law.lookahead(s) for s in (0, 1, 9)] == [0, 1, 2]
    assert law.step_s(9, 1) == pytest.approx(15)  # nine of ten are ready for the next step, and 90 s are 7 steps


def test_the_law_is_the_simulated_time() -> None:
    scenario = Scenario(
        workers=4, slots=64, prompts=32, samples=16, token_s=0.01, sequence_s=1e-4, update_s=20, sync_s=2, overcommit=4
    )
    law = Law(scenario, lognormal(1000, 1.0, 8000, 1, seed=0)(100_000)[:, 0])
    for staleness, lookahead in ((1, 1), (2, 1), (2, 2), (4, 2), (8, 4)):
        pipelined = replace(scenario, staleness=staleness, lookahead=lookahead)
        simulated = simulate(pipelined, lognormal(1000, 1.0, 8000, 16, seed=1), 8)
        assert simulated.step_s == pytest.approx(law.step_s(staleness, lookahead), rel=0.1), (staleness, lookahead)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the demo with completions of 10 tokens, all sampled at once in 5 s; the second step had a refill."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"base: {DEMO.resolve()}\n")
    step = {"time/update_s": 2.0, "time/sync_s": 0.5, "time/confirm_s": 0.25, "time/score_s": 1.5}
    rows = [
        {"step": 0, "time": 1.0, "eval/pass@1": 0.1},
        {"step": 1, "time": 2.0, "time/generate_s": 5.0, "groups/refill_rounds": 0} | step,
        {"step": 2, "time": 3.0, "time/generate_s": 10.0, "groups/refill_rounds": 1} | step,
        {"step": 3, "time": 3.0, "time/generate_s": 7.0, "groups/refill_rounds": 0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = json.dumps({"prompt": "a", "tokens": 10, "completion": "b"}) + "\n"
    for name in ("step_000001", "step_000002"):
        (folder / "rollouts" / f"{name}.jsonl").write_text(16 * line)
    (folder / "rollouts" / "eval_000000.jsonl").write_text('{"tokens": 999}\n')
    return folder


def test_times_come_from_the_run(run: Path) -> None:
    found = measure(run, demo(), GivenTimes())
    assert found.lengths.tolist() == 32 * [10]
    assert found.token_s == pytest.approx(0.5)
    assert (found.update_s, found.sync_s, found.score_s) == (2.0, 0.75, 1.5)
    assert "medians of 2 steps" in found.source


def test_the_update_is_scaled_to_the_planned_run(run: Path) -> None:
    assert measure(run, demo("algorithm.prompts_per_step=64"), GivenTimes()).update_s == 4.0
    assert measure(run, demo("learner.ranks=2"), GivenTimes()).update_s == 1.0


def test_given_times_replace_those_of_the_run(run: Path) -> None:
    found = measure(run, demo("learner.ranks=2"), GivenTimes(token_s=0.1, update_s=9, sync_s=0))
    assert (found.token_s, found.update_s, found.sync_s, found.score_s) == (0.1, 9, 0, 1.5)


def test_a_file_of_lengths(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text('7\n\n0\n{"tokens": 12, "text": "x"}\n')
    found = measure(file, demo(), GivenTimes(token_s=0.1, update_s=9))
    assert found.lengths.tolist() == [7, 1, 12]
    assert (found.token_s, found.update_s, found.sync_s, found.score_s) == (0.1, 9, 0, 0)


TIMES = GivenTimes(token_s=0.1, update_s=9)


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("7\n", GivenTimes(update_s=9), "a file of lengths has no times. Give --token-s"),
        ("7\n", GivenTimes(token_s=0.0, update_s=9), "--token-s 0: must be more than 0 seconds"),
        ("7\n", GivenTimes(token_s=0.1, update_s=float("nan")), "--update-s nan: must be more than 0 seconds"),
        ("7\n", replace(TIMES, sync_s=-1.0), "--sync-s -1: must be at least 0 seconds"),
        ("7\nx y\n", TIMES, "lengths, line 2: 'x y' is not a whole number of tokens, or JSON"),
        ('{"token": 3}\n', TIMES, "lengths, line 1: '{\"token\": 3}' is not a whole number"),
        ("7.5\n", TIMES, "lengths, line 1: '7.5' is not a whole number"),
        ("99999999999\n", TIMES, "lengths, line 1: '99999999999' is not a whole number"),
        ("\n", TIMES, "lengths: no length in it. Each line must be a whole number"),
        ("\0\udcff", TIMES, "lengths cannot be read"),
        (None, TIMES, "lengths cannot be read"),
    ],
)
def test_one_clear_error_for_a_file(text: str | None, given: GivenTimes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        measure(file, demo(), given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.yaml", "not a run folder, since it has no config.yaml"),
        ("rollouts/step_*.jsonl", "A run saves them if tracking.save_rollouts is at least 1"),
        ("metrics.jsonl", "metrics.jsonl cannot be read"),
    ],
)
def test_one_clear_error_for_a_run(missing: str, message: str, run: Path) -> None:
    for path in run.glob(missing):
        path.unlink()
    with pytest.raises(InputError) as error:
        measure(run, demo(), GivenTimes())
    assert message in str(error.value)


def test_a_run_that_has_not_trained_has_no_times(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "eval/pass@1": 0.1}\n')
    with pytest.raises(InputError, match="has no step with time/generate_s and time/update_s"):
        measure(run, demo(), GivenTimes())


def test_the_table_and_what_follows_from_it() -> None:
    """512 completions a step, all at once: 90 of each 100 have 10 tokens and 10 have 90, at 1 s a token."""
    lengths = np.array(90 * [10] + 10 * [90])
    measured = Measured(source="a file", lengths=lengths, token_s=1.0, update_s=20.0, sync_s=2.0, score_s=1.0)
    console = Console(file=StringIO(), width=120)
    show_gain(demo("rollout.workers=2", "rollout.overcommit=4"), measured, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "100 completions of 18 tokens on average, the longest of a step about 90" in said
    # 512 x 18 tokens in 1,024 slots at 1 s a token.
    assert "1e+03 ms per token, update 20 s, engines with filled slots 9 s, sync 2 s, scoring 1 s" in said
    rows = [line.replace("│", " ").split() for line in said.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["0", "1", "2", "4", "8"]
    # 81 % of the groups have a long completion and take 111 s, the others 31 s: 6 and 2 steps of 20 s, 5.2 on average.
    assert [row[1] for row in rows] == ["0", "1", "2", "4", "5"]
    assert rows[0][2:4] == ["113", "1.00"]
    # (90 + 1 + 20) / 5 = 22.2 and the sync; beyond 5 the learner never waits.
    assert float(rows[3][2]) == pytest.approx(24.2, abs=1)
    assert float(rows[4][2]) == pytest.approx(22, abs=0.3)
    assert [row[7] for row in rows] == ["512", "1,024", "1,536", "2,560", "3,072"]
    assert [row[8] for row in rows] == ["0", "0", "0", "1", "1"]
    assert "By the law nothing is gained beyond S = 5." in said
    assert "S = 8 is as fast as any row, within 5%. " in said
    assert "S = 0: fewer completions in flight than the 1,024 slots of" in said
    assert "object_store_mib" not in said


def test_the_object_store_holds_what_is_in_flight_and_the_batch() -> None:
    config = demo("algorithm.prompts_per_step=512")
    assert store_mib(config, 4, 2000) == (4 + 1 + 1) * 512 * 16 * 2000 * 13 / 2**20


def test_a_row_for_the_settings_of_the_run_and_a_hint_at_overcommit() -> None:
    lengths = np.array(90 * [10] + 10 * [90])
    measured = Measured(source="a file", lengths=lengths, token_s=1.0, update_s=20.0, sync_s=2.0, score_s=1.0)

    def said(overcommit: float) -> str:
        console = Console(file=StringIO(), width=120)
        settings = ["rollout.max_concurrent_sequences=64", "pipeline.max_staleness=3"]
        show_gain(demo(*settings, f"rollout.overcommit={overcommit}"), measured, console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert "│ 3 │ 3 │" in said(1)
    assert "rollout.overcommit=4: " in said(1)
    assert "rollout.overcommit=4" not in said(4)


@pytest.mark.parametrize(("address", "told"), [("null", True), ("local", True), ("10.0.0.1:6379", False)])
def test_completions_that_do_not_fit_into_the_object_store(address: str, told: bool) -> None:
    """512 completions of 20,000 tokens are 127 MiB. With A = 0 there are two times as many, with A = 1 three times."""
    measured = Measured(
        source="a file", lengths=np.array([20_000]), token_s=0.001, update_s=1.0, sync_s=2.0, score_s=1.0
    )
    console = Console(file=StringIO(), width=120)
    settings = demo(f"ray.address={address}", "ray.object_store_mib=300", "rollout.overcommit=4")
    show_gain(settings, measured, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("S = 1, 2, 4, 8: more than ray.object_store_mib = 300, so Ray writes" in said) == told


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DEMO), "--lengths", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.index("an engine holds") < said.index(f"{run}, medians of 2 steps")
    assert "S: pipeline.max_staleness" in said
    assert main(["plan", str(DEMO)]) == 0
    assert "max_staleness" not in capsys.readouterr().out
    assert main(["plan", str(DEMO), "--token-s", "0.1"]) == 2
    assert "need --lengths" in capsys.readouterr().err
    assert main(["plan", str(DEMO), "--lengths", str(run / "nowhere")]) == 2
    assert "nowhere cannot be read" in capsys.readouterr().err


def test_the_command_for_gpus_that_learner_and_engines_share(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rollout.gpu_memory_utilization=0.4", "--gpus", "1"]
    assert main(["plan", str(DEMO), *words, "--lengths", str(run)]) == 0
    assert "share the GPUs and take turns, so nothing overlaps" in capsys.readouterr().out

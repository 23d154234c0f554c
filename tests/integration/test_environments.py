"""Episodes of several turns: environments in processes that can be killed, and a training with real engines."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from maxpo.config import EnvironmentConfig
from rollout.episodes.environment_pool import EnvironmentPool, StepError
from tests.fakes import prompt
from tests.integration.commands import maxpo


@pytest.fixture(scope="module")
def pool() -> Iterator[EnvironmentPool]:
    config = EnvironmentConfig(name="tests.environments:Moody", args={"start": 5}, timeout_s=2.0, workers=2)
    pool = EnvironmentPool(config, 60.0)
    asyncio.run(pool.reset(prompt(), 7))  # the start of the processes is not part of the limit
    yield pool
    pool.shutdown()


def test_an_environment_keeps_its_state_from_one_process_to_the_next(pool: EnvironmentPool) -> None:
    async def episode(steps: int) -> tuple[str, set[float]]:
        state = await pool.reset(prompt(reference="r"), 7)
        pids: set[float] = set()
        for _ in range(steps):
            state, step = await pool.step(state, "fine")
            pids.add(step.parts["pid"])
        return step.observation, pids

    async def several() -> list[tuple[str, set[float]]]:
        return await asyncio.gather(*(episode(n) for n in range(1, 9)))

    used: set[float] = set()
    end = time.monotonic() + 60
    while len(used) < 2 and time.monotonic() < end:  # until both processes had their part
        seen = asyncio.run(several())
        assert [said for said, _ in seen] == [f"r/7/{5 + n}" for n in range(1, 9)]
        used.update(*(pids for _, pids in seen))
    assert len(used) == 2


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("hang", "timeout"),
        ("die", "died"),
        ("raise", "error: environment tests.environments:Moody: KeyError: 'raise'"),
        ("odd", "error: environment tests.environments:Moody: TypeError: step must return a .*, not 'no step'"),
    ],
)
def test_what_goes_wrong_in_a_step_is_its_outcome_and_the_pool_goes_on(
    pool: EnvironmentPool, text: str, outcome: str
) -> None:
    async def episode() -> str:
        state = await pool.reset(prompt(reference="r"), 7)
        with pytest.raises(StepError, match=f"^{outcome}$"):
            await pool.step(state, text)
        if text != "odd":
            with pytest.raises(StepError):
                await pool.reset(prompt(text), 7)
        return (await pool.step(state, "fine"))[1].observation

    assert asyncio.run(episode()) == "r/7/6"


def test_a_pool_whose_idle_processes_are_killed_is_replaced(pool: EnvironmentPool) -> None:
    before = pool._pool
    for pid in before._pool_manager.worker_manager.workers.copy():
        psutil.Process(pid).kill()
    time.sleep(1.0)
    state = asyncio.run(pool.reset(prompt(reference="r"), 1))
    assert asyncio.run(pool.step(state, "fine"))[1].observation == "r/1/6"
    assert pool._pool is not before


def test_a_step_without_a_turn_is_a_timeout_and_others_are_taken_again() -> None:
    """The one process hangs within its own time limit, which is longer than a step may wait."""
    config = EnvironmentConfig(name="tests.environments:Moody", timeout_s=60.0)
    pool = EnvironmentPool(config, 3.0)
    first = pool._pool

    async def later() -> str:
        await asyncio.sleep(2.0)
        return (await pool.step(state, "fine"))[1].observation

    async def both() -> tuple[object, object]:
        return await asyncio.gather(pool.step(state, "hang"), later(), return_exceptions=True)

    try:
        state = asyncio.run(pool.reset(prompt(reference="r"), 7))
        hung, taken_again = asyncio.run(both())
    finally:
        pool.shutdown()
    assert (type(hung), str(hung)) == (StepError, "timeout")
    assert taken_again == "r/7/1"
    assert pool._pool is not first


def test_a_policy_learns_to_ask_the_calculator(tmp_path: Path) -> None:
    shorter = ["run.steps=14", "eval.prompts=48", "eval.samples=8", "tracking.save_rollouts=2"]
    done = maxpo("train", "configs/presets/calculator.yaml", f"run.dir={tmp_path}", *shorter)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "calculator"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    # The learner reads the observations as the sampler did: else what follows them would be unlikely to it.
    assert all(line["mismatch/logprob_abs"] < 1e-4 for line in steps)
    assert steps[-1]["environment/turns"] > 1.4 > 1.2 > steps[0]["environment/turns"] > 1.0
    assert steps[-1]["environment/tokens"] > steps[0]["environment/tokens"] > 0
    assert steps[-1]["reward/calls"] == pytest.approx(steps[-1]["environment/turns"] - 1, abs=0.02)
    first, last = [line for line in lines if "eval/pass@1" in line]
    assert last["eval/pass@1/low"] > 1.5 * first["eval/pass@1/high"]
    # What the calculator said is right, and stands right behind the question.
    asked = 0
    for line in (run / "rollouts" / "step_000014.jsonl").read_text().splitlines():
        row = json.loads(line)
        for a, b, said in re.findall(r"<(\d+) \* (\d+)>(\d+):", row["completion"]):
            assert int(said) == int(a) * int(b)
            asked += 1
    assert asked >= 8

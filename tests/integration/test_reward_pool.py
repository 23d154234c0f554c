"""Verifiers in processes that can be killed."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from maxpo.config import RewardConfig
from maxpo.errors import RunError
from maxpo.loop.step_metrics import sampling_metrics
from maxpo.rewards.checks import check_some_scored
from maxpo.tracking.metrics import check_names
from maxpo.types import Group, Prompt
from rollout.scoring.verifier_pool import RewardPool, VerifierError
from tests.fakes import completion, prompt


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    config = RewardConfig(verifier="tests.verifiers:moody", workers=2, timeout_s=2.0, max_chars=10)
    pool = RewardPool(config, 64)
    pool.score([Group(prompt=prompt(), completions=(completion("warm"),))])  # start-up is not part of the limit
    yield pool
    pool.shutdown()


def group(*texts: str, aborted: int | None = None) -> Group:
    return Group(
        prompt=prompt(),
        completions=tuple(
            completion(t, finish_reason="abort" if i == aborted else "stop") for i, t in enumerate(texts)
        ),
    )


def test_each_answer_gets_its_own_verdict_in_order(pool: RewardPool) -> None:
    first, second = pool.score([group("yes", "no", "x" * 11), group("no", "yes", "yes", aborted=2)])
    assert first.rewards == (1.25, 0.25, 0.0)
    assert first.outcomes == ("ok", "ok", "too_long")
    assert first.valid == (True, True, False)
    assert first.reward_parts == {"right": (1.0, 0.0, 0.0), "short": (0.25, 0.25, 0.0)}
    assert second.outcomes == ("ok", "ok", "abort")
    assert second.valid == (True, True, False)


def test_only_the_guilty_answer_is_invalid_and_the_pool_goes_on(pool: RewardPool) -> None:
    started = time.monotonic()
    hung, dead, raised, fine = pool.score(
        [group("yes", "hang", "no"), group("die", "yes"), group("raise", "yes"), group("yes", "no")]
    )
    assert hung.outcomes == ("ok", "timeout", "ok")
    assert hung.valid == (True, False, True)
    assert hung.rewards[0] == 1.25
    assert dead.outcomes == ("died", "ok")
    assert raised.outcomes[0].startswith("error: prompt p: KeyError: 'raise' (")
    assert re.search(r"tests/verifiers\.py:\d+\)$", raised.outcomes[0])
    assert raised.outcomes[1] == "ok"
    assert raised.valid == (False, True)
    assert fine.outcomes == ("ok", "ok")
    assert time.monotonic() - started < 30
    (after,) = pool.score([group("yes", "no")])
    assert after.rewards == (1.25, 0.25)
    assert after.outcomes == ("ok", "ok")


def test_an_answer_that_hangs_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = tmp_path / "tried"
    config = RewardConfig(verifier="tests.verifiers:counted", workers=1, timeout_s=1.0)
    monkeypatch.setenv("MAXPO_TRIED", str(tried))
    pool = RewardPool(config, 64)
    try:
        (scored,) = pool.score([group("yes", "hang", "no")])
    finally:
        pool.shutdown()
    assert scored.outcomes == ("ok", "timeout", "ok")
    assert sorted(tried.read_text().split()) == ["hang", "no", "yes"]


def test_an_answer_whose_process_dies_gets_a_second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have been killed by somebody else."""
    tried = tmp_path / "tried"
    monkeypatch.setenv("MAXPO_TRIED", str(tried))
    pool = RewardPool(RewardConfig(verifier="tests.verifiers:counted", workers=1), 64)
    try:
        (scored,) = pool.score([group("die once", "fine", "die")])
    finally:
        pool.shutdown()
    assert scored.outcomes == ("ok", "ok", "died") and scored.valid == (True, True, False)
    assert sorted(tried.read_text().splitlines()) == ["die", "die", "die once", "die once", "fine"]


def test_what_cannot_be_decided_is_masked_and_counted() -> None:
    pool = RewardPool(RewardConfig(verifier="math"), 64)
    try:
        asked = replace(group(r"\boxed{9^{9^{9^{9}}}}", r"\boxed{5}", r"\boxed{6}"), prompt=prompt(reference=5))
        (scored,) = pool.score([asked])
    finally:
        pool.shutdown()
    assert scored.valid == (False, True, True)
    assert scored.successes == (False, True, False)
    assert scored.outcomes[0].startswith("undecided: ")
    assert sampling_metrics([scored], 1, 1.0)["verifier/undecided"] == 1.0


def pids(pool: RewardPool) -> set[int]:
    return set(pool._pool._pool_manager.worker_manager.workers.copy())


def processes(pool: RewardPool) -> list[psutil.Process]:
    """Both, at rest: a thread of the pool's own starts them, and may do so after a score."""
    before: set[int] = set()
    for _ in range(100):
        time.sleep(0.3)
        now = pids(pool)
        if now == before and len(now) == 2:
            break
        before = now
    return [psutil.Process(pid) for pid in sorted(before)]


@pytest.mark.parametrize("count", [1, 2])
def test_killed_while_idle(pool: RewardPool, count: int) -> None:
    pool.score([group("yes")])
    for process in processes(pool)[:count]:
        process.kill()
    time.sleep(1.0)  # so that it is noticed before there is work
    scored = pool.score([group("yes", "no"), group("no"), group("hang", "yes")])
    assert [s.rewards for s in scored] == [(1.25, 0.25), (0.25,), (0.0, 1.25)]
    assert [s.outcomes for s in scored] == [("ok", "ok"), ("ok",), ("timeout", "ok")]


def test_killed_between_answers_over_and_over(pool: RewardPool) -> None:
    stop = threading.Event()

    def killing() -> None:
        draw = random.Random(0)
        while not stop.wait(0.3):
            for pid in sorted(pids(pool))[:1]:
                time.sleep(draw.random() * 0.01)
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()

    killer = threading.Thread(target=killing)
    killer.start()
    try:
        for _ in range(12):
            scored = pool.score([group("yes", "no", "yes") for _ in range(17)])
            judged = {outcome for s in scored for outcome in s.outcomes}
            assert judged <= {"ok", "died"}
            assert {r for s in scored for r, ok in zip(s.rewards, s.valid, strict=True) if ok} == {1.25, 0.25}
    finally:
        stop.set()
        killer.join()
    assert pool.score([group("yes", "no")])[0].rewards == (1.25, 0.25)


def test_processes_that_all_hang_are_given_up(pool: RewardPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, as where their machine has no memory left: no task begins, so no time limit of a task helps."""
    pool.score([group("yes")])
    stopped = processes(pool)
    for process in stopped:
        process.suspend()
    monkeypatch.setattr(pool, "_stall_s", 8.0)
    assert pool.score([group("yes", "no")])[0].rewards == (1.25, 0.25)
    for process in stopped:
        process.wait(60)


@pytest.mark.parametrize(("name", "rewards"), [("slow", (0.5, -1.0)), ("secret", (0.0, 0.0))])
def test_custom_rewards_may_be_async_and_never_see_the_clusters_token(
    name: str, rewards: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    pool = RewardPool(RewardConfig(verifier=f"tests.verifiers:{name}"), 64)
    try:
        assert pool.score([group("yes", "no")])[0].rewards == rewards
    finally:
        pool.shutdown()


def test_each_source_may_have_a_verifier_of_its_own_and_unread_answers_are_masked() -> None:
    config = RewardConfig(
        verifier="combined",
        parts={"exact": 2.0, "length": 0.5, "tests.verifiers:moody": 1.0},
        args={"length": {"start": 2, "cap": 6}},
        by_source={"other": "numeric", "silent": "format"},
        max_chars=10,
    )
    pool = RewardPool(config, 64)
    try:
        other = Prompt(prompt_id="o", text="o", token_ids=(1,), reference=3, source="other")
        usual, special = pool.score(
            [
                group("yes", "no", "x" * 11),
                Group(prompt=other, completions=(completion("3"), completion("4"), completion("x" * 11))),
            ]
        )
        silent = replace(usual, group=replace(usual.group, prompt=replace(prompt(), source="silent")))
        answers = pool.answers([usual, silent, special])
    finally:
        pool.shutdown()
    # Of `combined` the one part that looks for an answer; none of what was not read; `format` looks for none.
    assert answers == [("yes", "no", None), None, ("3", "4", None)]
    # yes: 2 - 0.5 / 4 + 1.25. no: moody's 0.25 alone. The long one is not read, and may be right.
    assert usual.rewards == (3.125, 0.25, 0.0)
    assert usual.valid == (True, True, False)
    assert usual.outcomes == ("ok", "ok", "too_long")
    assert usual.reward_parts == {
        "exact": (1.0, 0.0, 0.0),
        "length": (-0.25, 0.0, 0.0),
        "tests.verifiers.moody": (1.25, 0.25, 0.0),
        "tests.verifiers.moody/right": (1.0, 0.0, 0.0),
        "tests.verifiers.moody/short": (0.25, 0.25, 0.0),
    }
    assert usual.successes == (True, False, False)
    assert special.rewards == (1.0, 0.0, 0.0)
    assert special.successes == (True, False, False)
    assert special.reward_parts == {"format": (1.0, 1.0, 0.0)}
    scored = sampling_metrics([usual, special], 1, 1.0)
    check_names(list(scored))
    assert scored["reward/tests.verifiers.moody/right"] == 1 / 2
    assert scored["reward/format"] == 1.0


def test_a_reward_that_always_fails_stops_the_run_with_its_prompt() -> None:
    pool = RewardPool(RewardConfig(verifier="tests.verifiers:wrong_type"), 64)
    try:
        with pytest.raises(RunError, match=r"failed on every answer; first error: prompt p: TypeError.*'good'"):
            check_some_scored(pool.score([group("yes", "no")]))
    finally:
        pool.shutdown()
    with pytest.raises(ValueError, match=r"no verifier is called 'nope': use one of \['choice', 'code', .*'countdown'"):
        RewardPool(RewardConfig(verifier="nope"), 64)


def test_no_process_is_started_after_the_end() -> None:
    """A run may end while its scoring thread is at work."""
    config = RewardConfig(verifier="tests.verifiers:moody", workers=1, timeout_s=60.0)
    mine = set(psutil.Process().children(recursive=True))
    pool = RewardPool(config, 64)
    pool.score([group("yes")])
    pool._stall_s = 2.0  # pebble may never tell the end of a task whose pool is stopped
    errors: list[BaseException] = []

    def score() -> None:
        try:
            pool.score([group(*["hang"] * 4)])
        except VerifierError as error:
            errors.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    time.sleep(0.5)
    pool.shutdown()
    thread.join(30)
    assert [str(error) for error in errors] == ["the verifier processes were ended while they were at work"]
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - mine, timeout=10)
    assert [p for p in alive if "spawn_main" in " ".join(p.cmdline())] == []

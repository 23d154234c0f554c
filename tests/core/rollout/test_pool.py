"""Sampling over all workers, with fake actors whose calls end when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from maxpo.batches.samples import Sample
from maxpo.config import Config, RewardConfig, RolloutConfig
from maxpo.errors import RemoteError, RunError
from maxpo.types import Group, Prompt, WeightManifest, WeightsState
from rollout.pool import RolloutPool
from rollout.protocols import Probe
from tests.fakes import completion, prompt


class FakeActor:
    """Hands each call to `answer`, which ends its future now, later or never."""

    def __init__(self, number: int, answer: Callable[[int, Prompt, Future[Group]], None]) -> None:
        self.number, self.answer = number, answer
        self.generate = SimpleNamespace(remote=self._generate)
        self.start = SimpleNamespace(remote=lambda version: [])
        self.sign_of_life = SimpleNamespace(remote=lambda: [])

    def _generate(self, rollout_id: str, prompt: Prompt, n: int, seed: int, limit_s: float, *, greedy: bool) -> Any:
        future: Future[Group] = Future()
        self.answer(self.number, prompt, future)
        return SimpleNamespace(future=lambda: future)


def pool(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, Prompt, Future[Group]], None], **settings: Any
) -> RolloutPool:
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr("ray.cancel", lambda ref: None)
    monkeypatch.setattr("ray.wait", lambda refs, **_: ([], refs))
    monkeypatch.setattr("rollout.pool._actor_factory", lambda *_: lambda number: FakeActor(number, answer))
    settings = {"workers": 2, "max_new_tokens": 1, "max_concurrent_sequences": 4, "overcommit": 1.0} | settings
    config = Config(rollout=RolloutConfig(**settings), reward=RewardConfig(verifier="exact"))
    return RolloutPool(config, "cpu", "gloo", lambda number: {})


def group(prompt: Prompt) -> Group:
    return Group(prompt=prompt, completions=(completion(),))


def test_calls_of_control_never_wait_behind_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor takes more calls at once than groups and health checks and syncs can be at the same time."""
    given: list[int] = []

    class Remote:
        def options(self, *, max_concurrency: int) -> Remote:
            given.append(max_concurrency)
            return self

        def remote(self, *args: Any, **kwargs: Any) -> object:
            return object()

    monkeypatch.setattr("rollout.pool.ray.remote", lambda cls: Remote())
    rollout = RolloutConfig(workers=1, max_new_tokens=1, max_concurrent_sequences=4096)
    RolloutPool(Config(rollout=rollout, reward=RewardConfig(verifier="exact")), "cpu", "gloo", lambda number: {})
    most_groups = 4096 + 1  # greedy groups of one completion
    assert given[0] >= most_groups + 16


PROMPTS = [prompt(f"p{i}") for i in range(10)]


def test_groups_come_in_the_order_of_the_prompts_and_workers_hold_what_they_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[tuple[int, Prompt, Future[Group]]] = []
    most = [0, 0]

    def answer(number: int, prompt: Prompt, future: Future[Group]) -> None:
        held.append((number, prompt, future))
        load = sum(n == number for n, _, _ in held)
        most[number] = max(most[number], load)
        if len(held) == 6 or prompt is PROMPTS[-1]:  # all slots are taken, or nothing more is to come
            end = [held.pop() for _ in range(3 if prompt is not PROMPTS[-1] else len(held))]
            for _, of, ends in end:
                ends.set_result(group(of))

    arrived: list[str] = []
    groups = pool(monkeypatch, answer).generate(PROMPTS, 2, "x", lambda g: arrived.append(g.prompt.prompt_id))
    assert [g.prompt for g in groups] == PROMPTS
    assert sorted(arrived) == sorted(p.prompt_id for p in PROMPTS)
    assert most == [3, 3]  # ceil(4 / 2) + 1


def test_groups_of_a_lost_worker_are_sampled_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, prompt: Prompt, future: Future[Group]) -> None:
        if number == 0:
            future.set_exception(RayActorError())
        else:
            future.set_result(group(prompt))

    rollouts = pool(monkeypatch, answer)
    assert [g.prompt for g in rollouts.generate(PROMPTS, 2, "x")] == PROMPTS
    assert rollouts._fleet.restarts == 1
    assert rollouts._sampling.resampled == 3


def test_an_error_of_a_request_names_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, prompt: Prompt, future: Future[Group]) -> None:
        if number == 1:
            future.set_exception(ValueError("no such token"))

    with pytest.raises(RemoteError, match="rollout worker 1 failed while generating: no such token"):
        pool(monkeypatch, answer).generate(PROMPTS, 2, "x")


def test_workers_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, prompt: Prompt, future: Future[Group]) -> None:
        if number == 0:
            future.set_result(group(prompt))

    monkeypatch.setattr("rollout.sampling.GRACE_S", 0.1)
    rollouts = pool(monkeypatch, answer, generate_timeout_s=0.2, health_timeout_s=1000.0)
    with pytest.raises(RemoteError, match=r"^rollout worker 1 did not return a group within 0\.3 s"):
        rollouts.generate(PROMPTS, 2, "x")


def test_engines_that_share_gpus_all_run_before_they_rest_and_before_the_learner_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts, said = pool(monkeypatch, lambda *_: None), list[str]()
    for name in ("wait_for_all", "replace_all", "replace"):
        monkeypatch.setattr(rollouts._fleet, name, lambda *args, name=name: said.append(name))
    monkeypatch.setattr(rollouts, "_ask", lambda method, doing, *args: said.append(f"{method} {args}"))
    rollouts.rest()
    rollouts.learner_restarts()
    assert said == []
    rollouts._sleep_level = 2
    rollouts.rest()
    rollouts.learner_restarts()
    assert said == ["wait_for_all", "sleep (2,)", "replace_all", "wait_for_all"]
    assert not rollouts._asleep  # the new ones are awake


class Engines:
    """Answers of engines to the questions of `RolloutPool.confirm`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.pool = pool(monkeypatch, lambda *_: None, **settings)
        self.fleet = self.pool._fleet
        self.probed: list[str] = []
        self.dying: set[str] = set()
        self.off = 0.0
        self.pool.logprobs = self._logprobs
        monkeypatch.setattr(self.pool, "_ask", self._ask)

    def _ask(self, method: str, doing: str, *args: object, only: Any = None, limit_s: float | None = None) -> Any:
        assert method == "probe"
        self.probed += sorted(only)
        for name in sorted(self.dying & set(only)):
            self.fleet.lost(name, only[name], RayActorError())
        one = completion(tokens=3)
        return {name: Probe(prompts=((1, 2),), together=(one,), alone=(one,)) for name in set(only) - self.dying}

    def _logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        return [[x + self.off for x in sample.rollout_logprobs] for sample in samples]

    def start_again(self) -> None:
        """Let the replacements of lost workers start."""
        self.fleet.ready |= {name: start.actor for name, start in self.fleet._starting.items()}
        self.fleet._starting.clear()

    def confirm(self) -> str | None:
        """Confirm a sync. The names of the workers that were probed are in `probed`."""
        self.probed = []
        received: dict[str, WeightsState] = {name: (0, [{}]) for name in self.fleet.started}
        return self.pool.confirm(
            WeightManifest(version=0, names=(), dtypes=(), shapes=(), digests=(), received=received)
        )


def test_each_engine_is_compared_once_for_each_of_its_starts_and_of_the_learner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = ["rollout worker 0", "rollout worker 1"]
    engines = Engines(monkeypatch)
    said = engines.confirm()
    assert engines.probed == both
    assert said is not None
    assert said.endswith(": engine and learner agree to 0.0e+00 nats on 6 sampled tokens")
    assert engines.confirm() is None
    assert engines.probed == []
    engines.fleet.replace(both[1])
    assert engines.confirm() is None, "the replacement has not started"
    engines.start_again()
    said = engines.confirm()
    assert said is not None
    assert said.startswith("rollout worker 1: ")
    assert engines.probed == both[1:]
    assert sorted(engines.fleet.serving) == both
    engines.pool.learner_restarts()
    assert engines.confirm() is not None
    assert engines.probed == both


def test_an_engine_that_computes_something_else_never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(monkeypatch)
    engines.confirm()
    engines.fleet.replace("rollout worker 0")
    engines.start_again()
    engines.off = 0.2
    with pytest.raises(RunError, match="rollout worker 0 does not compute what the learner computes"):
        engines.confirm()
    assert list(engines.fleet.serving) == ["rollout worker 1"]
    engines.off = 0.0
    assert engines.confirm() is not None, "it was compared without success"
    assert engines.probed == ["rollout worker 0"]


def test_an_engine_that_dies_in_the_comparison_is_replaced_and_its_replacement_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = Engines(monkeypatch)
    engines.dying = {"rollout worker 0"}
    said = engines.confirm()
    assert said is not None
    assert said.startswith("rollout worker 1: ")
    assert engines.fleet.restarts == 1
    engines.dying = set()
    engines.start_again()
    assert engines.confirm() is not None
    assert engines.probed == ["rollout worker 0"]


@pytest.mark.parametrize("can_receive", [True, False])
def test_after_a_loss_only_engines_that_stopped_midway_are_started_again(
    monkeypatch: pytest.MonkeyPatch, can_receive: bool
) -> None:
    monkeypatch.setattr("rollout.pool.time.sleep", lambda seconds: None)
    rollouts = pool(monkeypatch, lambda *_: None)
    fleet = rollouts._fleet

    def ask(method: str, doing: str) -> dict[str, bool]:
        assert method == "can_receive"
        fleet.lost("rollout worker 0", fleet.serving["rollout worker 0"], RayActorError())
        return {"rollout worker 1": can_receive}

    monkeypatch.setattr(rollouts, "_ask", ask)
    assert rollouts.replace_lost()
    assert fleet.restarts == (1 if can_receive else 2)
    assert list(fleet.started) == (["rollout worker 1"] if can_receive else [])

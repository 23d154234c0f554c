"""The real loop over fakes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from maxpo.batches.samples import penalise_length
from maxpo.checkpoints.local import Checkpoints
from maxpo.config import AlgorithmConfig, Config, EvalConfig, RunConfig
from maxpo.data.order import PromptStream
from maxpo.errors import RemoteError, RunError
from maxpo.estimators.advantages import ADVANTAGES, maxpo
from maxpo.estimators.k_schedule import PassRates, adapted_k
from maxpo.loop.collect import Collector
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.loop.selection import assess
from maxpo.loop.step_metrics import usable_metrics
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import Group, Mix, Prompt, Receiver, StepBatch, StepResult, WeightManifest
from tests.fakes import FakeLearner, FakeRollouts, completion, prompt, scored


def config(**algorithm: Any) -> Config:
    return Config(
        run=RunConfig(name="t", steps=3),
        algorithm=AlgorithmConfig(**({"k": 2, "group_size": 8, "prompts_per_step": 4} | algorithm)),
        eval=EvalConfig(prompts=3, samples=16, every=2, k=[1, 4]),
    )


def run(
    tmp_path: Path,
    settings: Config,
    rollouts: FakeRollouts,
    learner: FakeLearner | None = None,
    observer: Observer | None = None,
    **kwargs: Any,
) -> tuple[Any, FakeLearner, list[dict[str, Any]]]:
    learner = learner or FakeLearner()
    rollouts.group_size = settings.algorithm.group_size
    tmp_path.mkdir(exist_ok=True)
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=2)
    held_out = [prompt(f"e{i}") for i in range(3)]
    stream = PromptStream([prompt(f"p{i}") for i in range(100)], seed=0)
    result = Trainer(settings, stream, held_out, rollouts, learner, log, observer or Observer(), **kwargs).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return result, learner, lines


def test_a_publish_is_repeated_under_its_version_where_an_engine_was_lost() -> None:
    class Failing(FakeLearner):
        failures = 2

        def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
            manifest = super().publish(receivers, again=again)
            if self.failures:
                self.failures -= 1
                raise RemoteError("rollout worker 0 failed while receiving weights")
            return manifest

    rollouts, learner = FakeRollouts(), Failing()
    with pytest.raises(RemoteError):
        publish(rollouts, learner, Observer())
    rollouts.replace_lost = lambda: True  # type: ignore[method-assign]
    learner.failures = 2
    assert publish(rollouts, learner, Observer())["weights/version"] == 1.0
    assert rollouts.confirmed == [1]


def test_a_run_does_each_stage_in_order_and_writes_it_down(tmp_path: Path) -> None:
    rollouts = FakeRollouts()
    result, learner, lines = run(tmp_path, config(), rollouts)
    # Weights are published before anything is sampled and after each update, and confirmed each time.
    assert rollouts.confirmed == [0, 1, 2, 3]
    assert [draw for draw, _, _ in rollouts.draws] == ["eval", "step1.0", "step2.0", "eval", "step3.0", "eval"]
    assert [b.step for b in learner.batches] == [1, 2, 3]
    assert {c.min_weight_version for g in learner.batches[1].groups for c in g.group.completions} == {1}
    assert sorted(result.evaluations) == [0, 2, 3]
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 3]
    assert lines[1]["groups/sampled"] == 4.0
    assert lines[1]["weights/version"] == 1.0
    assert "eval/pass@4" in lines[0]
    samples = (tmp_path / "rollouts" / "step_000001.jsonl").read_text().splitlines()
    assert len(samples) == 2 * 8
    assert json.loads(samples[0])["reward"] in (0.0, 1.0)
    # Nobody learns in this fake, and evaluations draw with the same seeds, so they agree exactly.
    assert result.evaluations[0] == result.evaluations[3]


class Off(FakeLearner):
    """A learner whose log-probabilities are off from a step on."""

    def __init__(self, off: float, step: int) -> None:
        super().__init__()
        self._later, self._step = off, step

    def update(self, batch: StepBatch) -> StepResult:
        metrics = super().update(batch).metrics
        if batch.step >= self._step:
            self.off = self._later
            metrics = {**metrics, "mismatch/kl": math.expm1(self.off) - self.off}
        return StepResult(metrics=metrics)


def test_a_sampler_that_is_not_the_policy_stops_the_training(tmp_path: Path) -> None:
    learner = Off(0.5, step=2)
    with pytest.raises(RunError, match=r"step 2: mismatch/kl = 0\.149 nats a token.*rollout\.max_mismatch_kl = 0\.1"):
        run(tmp_path, config(), FakeRollouts(), learner)
    assert len(learner.batches) == 2
    assert (tmp_path / "rollouts" / "mismatch_step_2.jsonl").read_text().count("\n") >= 8
    settings = config()
    settings.rollout.max_mismatch_kl = 0.15
    run(tmp_path / "higher", settings, FakeRollouts(), Off(0.5, step=2))
    settings.rollout.max_mismatch_kl = None
    run(tmp_path / "off", settings, FakeRollouts(), Off(3.0, step=2))


def test_with_staleness_the_limit_is_for_tokens_of_the_current_weights(tmp_path: Path) -> None:
    """Older ones differ because the policy has moved on."""

    class Stale(FakeLearner):
        def update(self, batch: StepBatch) -> StepResult:
            metrics = {**super().update(batch).metrics, "mismatch/kl": 0.5, "mismatch/kl_lag_1": 0.6}
            return StepResult(metrics=metrics | {"mismatch/kl_lag_0": 0.2 if batch.step == 3 else 0.01})

    settings = config()
    settings.pipeline.max_staleness = 2
    with pytest.raises(RunError, match=r"step 3: mismatch/kl_lag_0 = 0\.2 nats a token"):
        run(tmp_path, settings, FakeRollouts(), Stale())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("where", ["step 3: mismatch/kl", "evaluation 3: eval/mismatch_kl"])
def test_the_checkpoint_before_the_alarm_stays_and_the_run_goes_on_from_it(
    where: str, asynchronous: bool, tmp_path: Path
) -> None:
    class OffInEvaluation(Off):
        def update(self, batch: StepBatch) -> StepResult:
            return StepResult(metrics={**super().update(batch).metrics, "mismatch/kl": 0.0})

    settings = config()
    settings.run.steps, settings.checkpoint.every, settings.eval.every = 4, 1, 3
    checkpoints = Checkpoints(tmp_path / "checkpoints", asynchronous=asynchronous)
    learner = (Off if "step" in where else OffInEvaluation)(0.5, step=3)
    with pytest.raises(RunError, match=where):
        run(tmp_path, settings, FakeRollouts(), learner, checkpoints=checkpoints)
    checkpoints.abandon()
    assert checkpoints.steps() == [1, 2]
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=2, resumed_step=2)
    stream = PromptStream([prompt(f"p{i}") for i in range(100)], seed=0)
    rollouts, held_out = FakeRollouts(), [prompt(f"e{i}") for i in range(3)]
    again = Trainer(settings, stream, held_out, rollouts, FakeLearner(), log, Observer(), checkpoints=checkpoints)
    assert again.run(checkpoints.folder / "step_000002").steps == 4


def test_the_same_in_an_evaluation(tmp_path: Path) -> None:
    learner = FakeLearner()
    _, _, lines = run(tmp_path / "right", config(), FakeRollouts(), learner)
    assert [line["eval/mismatch_kl"] for line in lines if "eval/pass@1" in line] == [0.0, 0.0, 0.0]
    learner.off = -0.5
    with pytest.raises(RunError, match=r"evaluation 0: eval/mismatch_kl = 0\.107 nats"):
        run(tmp_path / "wrong", config(), FakeRollouts(), learner)
    assert (tmp_path / "wrong" / "rollouts" / "mismatch_evaluation_0.jsonl").is_file()


def test_the_comparison_of_new_engines_is_told(tmp_path: Path) -> None:
    class Noting(Observer):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    class Comparing(FakeRollouts):
        def confirm(self, manifest: WeightManifest) -> str | None:
            super().confirm(manifest)
            return "engines agree" if manifest.version == 0 else None

    observer = Noting()
    run(tmp_path, config(), Comparing(), observer=observer)
    assert observer.notes == ["engines agree"]


def silent(p: Prompt) -> float:
    return 1.0 if int(p.prompt_id[1:]) % 2 else 0.5


def test_groups_without_signal_are_dropped_counted_and_still_in_the_denominators(tmp_path: Path) -> None:
    _, learner, lines = run(tmp_path, config(), FakeRollouts(silent))
    steps = [line for line in lines if "groups/kept" in line]
    assert sum(line["groups/zero_signal"] for line in steps) > 0
    for line, batch in zip(steps, learner.batches, strict=True):
        assert line["groups/kept"] + line["groups/zero_signal"] == 4.0
        assert len(batch.groups) == line["groups/kept"]
        assert batch.sampled_sequences == 4 * 8
        assert batch.sampled_tokens == 4 * 8 * 3


def test_dropped_groups_are_refilled_up_to_the_limit(tmp_path: Path) -> None:
    rollouts = FakeRollouts(silent)
    _, learner, lines = run(tmp_path, config(refill_rounds=2), rollouts)
    steps = [line for line in lines if "groups/kept" in line]
    assert any(line["groups/refill_rounds"] > 0 for line in steps)
    assert all(line["groups/refill_rounds"] <= 2 for line in steps)
    for line, batch in zip(steps, learner.batches, strict=True):
        assert line["groups/kept"] == 4.0 or line["groups/refill_rounds"] == 2.0
        assert batch.sampled_sequences == 8 * line["groups/sampled"]
    asked = [p for draw, names, _ in rollouts.draws if draw != "eval" for p in names]
    assert len(set(asked)) == len(asked)


def test_a_step_without_any_signal_trains_nothing_and_goes_on(tmp_path: Path) -> None:
    result, learner, lines = run(tmp_path, config(), FakeRollouts(lambda p: 1.0))
    assert learner.batches == []
    assert result.steps == 3
    assert [line["groups/kept"] for line in lines if "groups/kept" in line] == [0.0] * 3


def test_with_the_filter_off_everything_reaches_the_learner(tmp_path: Path) -> None:
    _, learner, _ = run(tmp_path, config(drop_zero_signal=False), FakeRollouts(lambda p: 1.0))
    assert [len(b.groups) for b in learner.batches] == [4, 4, 4]


def test_a_stop_ends_the_run_after_its_step(tmp_path: Path) -> None:
    rollouts = FakeRollouts()
    asked = lambda: any(draw.startswith("step2") for draw, _, _ in rollouts.draws)  # noqa: E731
    result, learner, _ = run(tmp_path, config(), rollouts, should_stop=asked)
    assert (result.steps, result.stopped, len(learner.batches)) == (2, True, 2)
    assert sorted(result.evaluations) == [0]  # the one that step 2 was due is left out


def test_the_groups_of_a_step_that_failed_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: FakeLearner, batch: Any) -> Any:
        raise RemoteError("learner rank 0 failed while step 1: the loss is not finite")

    monkeypatch.setattr(FakeLearner, "update", failing)
    with pytest.raises(
        RunError, match=r"(?s)rank 0.*not finite.*The groups of step 1 are in .*failed_step_000001.jsonl"
    ):
        run(tmp_path, config(drop_zero_signal=False), FakeRollouts())
    rows = (tmp_path / "rollouts" / "failed_step_000001.jsonl").read_text().splitlines()
    assert len(rows) == 4 * 8
    assert {"prompt", "completion", "reward", "success"} <= set(json.loads(rows[0]))


class Refusing(FakeLearner):
    """Refuses this many optimizer steps of each training step in turn."""

    def __init__(self, refused: Sequence[int]) -> None:
        super().__init__()
        self.refused = refused

    def update(self, batch: StepBatch) -> StepResult:
        found = super().update(batch)
        return StepResult(metrics=dict(found.metrics) | {"train/refused_steps": float(self.refused[batch.step - 1])})


def run_refusing(folder: Path, refused: Sequence[int]) -> list[dict[str, Any]]:
    settings = config(minibatches=2)
    settings.run.steps, settings.eval = len(refused), EvalConfig(at_start=False, at_end=False)
    log = RunLog(folder, tensorboard=False, save_rollouts=0)
    stream = PromptStream([prompt(f"p{i}") for i in range(4 * len(refused))], seed=0)
    Trainer(settings, stream, [], FakeRollouts(), Refusing(refused), log, Observer()).run()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_with_refused_optimizer_steps_is_counted_and_its_groups_written_down(tmp_path: Path) -> None:
    lines = run_refusing(tmp_path, [0, 1, 2, 0])
    assert [line["train/refused_steps"] for line in lines] == [0.0, 1.0, 2.0, 0.0]
    assert [line["weights/version"] for line in lines] == [1.0, 2.0, 3.0, 4.0]
    files = sorted(file.name for file in (tmp_path / "rollouts").iterdir())
    assert files == ["nonfinite_step_000002.jsonl", "nonfinite_step_000003.jsonl"]
    assert len((tmp_path / "rollouts" / files[0]).read_text().splitlines()) == lines[1]["groups/kept"] * 8


def test_a_run_that_only_refuses_stops(tmp_path: Path) -> None:
    message = r"not finite in every optimizer step of the last 20 training steps.*nonfinite_step_"
    for name, before in (("a", [0]), ("b", [2] * 19 + [1])):
        (tmp_path / name).mkdir()
        with pytest.raises(RunError, match=message):
            run_refusing(tmp_path / name, [*before, *[2] * 25])
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == len(before) + 20


def test_an_undocumented_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="rewards/bogus"):
        RunLog(tmp_path, tensorboard=False, save_rollouts=0).log(1, {"rewards/bogus": 1.0})


@pytest.mark.parametrize(
    ("name", "k", "rewards", "signal"),
    [
        ("maxpo", 2, [0.3] * 4, False),
        ("maxpo", 2, [1, 1, 1, 0], False),  # removing any one sample leaves a best of two of 1 or the same chance
        ("maxpo", 1, [1, 1, 1, 0], True),
        ("grpo", 1, [0.3] * 4, False),
        ("grpo", 1, [1e6, 1e6 + 1, 1e6, 1e6], True),
        ("maxpo", 2, [1e-8, 0, 0, 0], True),
        ("pkpo_loo_minus_one", 2, [0.3] * 4, False),
        ("pkpo_loo_minus_one", 1, [0.3] * 4, True),
        ("grpo", 1, [0, 1e7, 0, 0], True),  # its advantages are near 1 whatever the rewards
    ],
)
def test_signal_is_a_matter_of_the_advantages(name: str, k: int, rewards: list[float], signal: bool) -> None:
    (judged,) = assess([scored(rewards)], AlgorithmConfig(advantage=name, k=k, group_size=4), [k], Mix())
    assert (judged.enough, judged.has_signal) == (True, signal)


def test_groups_with_too_few_valid_samples_are_counted_apart() -> None:
    group = scored([1, 0, 0, 1], valid=[True, True, False, False])
    (judged,) = assess([group], AlgorithmConfig(k=2, group_size=4), [2], Mix())
    assert (judged.enough, judged.has_signal) == (False, False)
    # Each group needs what its own K asks for, and what the estimator that is mixed in asks for.
    first, second = assess([group, group], AlgorithmConfig(k=2, group_size=4), [1, 2], Mix())
    assert (first.enough, second.enough) == (True, False)
    mixing = AlgorithmConfig(advantage="grpo", mix_with="maxpo", k=2, group_size=4)
    assert not assess([group], mixing, [2], Mix(weight=0.5))[0].enough


def steps_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "groups/kept" in line]


def test_k_follows_its_schedule_and_reaches_the_learner(tmp_path: Path) -> None:
    _, learner, lines = run(tmp_path, config(k_schedule="linear", k_values=[5, 1]), FakeRollouts())
    assert [line["algorithm/k"] for line in steps_of(lines)] == [5.0, 3.0, 1.0]
    assert [set(b.k) for b in learner.batches] == [{5}, {3}, {1}]
    assert all(len(b.k) == len(b.groups) for b in learner.batches)


def test_adaptive_k_is_chosen_from_earlier_steps_only(tmp_path: Path) -> None:
    # Nothing is known in the first step, so K is the largest; then the pass rate of 0.9 asks for a K of 1.
    settings = config(k_schedule="adaptive", k_values=[1, 6], drop_zero_signal=False)
    _, learner, lines = run(tmp_path, settings, FakeRollouts(lambda p: 0.9))
    assert [set(b.k) for b in learner.batches] == [{6}, {1}, {1}]
    assert [line["algorithm/k"] for line in steps_of(lines)] == [6.0, 1.0, 1.0]


class Alternating(FakeRollouts):
    """Solves prompts never, seldom or mostly; of some, the first answer is invalid."""

    def __init__(self) -> None:
        super().__init__(lambda p: (0.0, 0.15, 0.7)[int(p.prompt_id[1:]) % 3])

    def score(self, groups: Any) -> Any:
        return [
            scored(
                s.rewards,
                [i > 0 or int(s.group.prompt.prompt_id[1:]) % 2 > 0 for i in range(len(s.rewards))],
                prompt=s.group.prompt,
                completions=s.group.completions,
            )
            for s in super().score(groups)
        ]


def test_adaptive_k_stays_with_its_group_when_others_are_dropped_or_refilled(tmp_path: Path) -> None:
    """The same rates, kept by hand from everything that was sampled, give the K of every group that was kept."""
    settings = config(k_schedule="adaptive", k_values=[1, 6], refill_rounds=1, prompts_per_step=6)
    settings.run.steps = 12
    rollouts = Alternating()
    taken: list[list[Any]] = []
    score = rollouts.score
    rollouts.score = lambda groups: taken.append(score(groups)) or taken[-1]  # type: ignore[method-assign]
    stream = PromptStream([prompt(f"p{i}") for i in range(10)], seed=0)
    learner = FakeLearner()
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=0)
    Trainer(settings, stream, [prompt("e0")], rollouts, learner, log, Observer()).run()

    rates = PassRates()
    by_step: dict[int, list[Any]] = {}
    for (draw, _, _), groups in zip(rollouts.draws, taken, strict=True):
        if draw != "eval":
            by_step.setdefault(int(draw[4:].partition(".")[0]), []).extend(groups)
    batches = {batch.step: batch for batch in learner.batches}
    for step, groups in by_step.items():
        ks = {id(s): adapted_k(rates(s.group.prompt.prompt_id), 1, 6) for s in groups}
        if step in batches:
            assert list(batches[step].k) == [ks[id(s)] for s in batches[step].groups]
        observed: dict[str, list[bool]] = {}
        for s in groups:
            valid = [success for success, ok in zip(s.successes, s.valid, strict=True) if ok]
            observed.setdefault(s.group.prompt.prompt_id, []).extend(valid)
        rates.observe(observed)
    assert len({k for batch in learner.batches for k in batch.k}) > 1
    assert any(len(batch.groups) < 6 for batch in learner.batches)


def test_judged_advantages_are_those_of_the_settings(tmp_path: Path) -> None:
    groups = [scored([1, 0, 0, 1, 2], [True, True, True, False, True]), scored([3, 0, 1, 0, 0])]
    settings = AlgorithmConfig(objective="min", mix_with="grpo", k=2, group_size=5, shadow=["maxpo", "pkpo"])
    judged = assess(groups, settings, [3, 2], Mix(weight=0.25))
    for group, k, found in zip(groups, (3, 2), judged, strict=True):
        rewards, valid = torch.tensor([group.rewards], dtype=torch.float64), torch.tensor([group.valid])
        want = 0.75 * maxpo(rewards, k, valid, objective="min") + 0.25 * ADVANTAGES["grpo"](rewards, k, valid)
        torch.testing.assert_close(torch.tensor([found.advantages], dtype=torch.float64), want)
    # The shadow takes each group's own K and the objective too.
    alone = assess(groups, AlgorithmConfig(objective="min", k=2, group_size=5), [3, 2], Mix())
    metrics = usable_metrics(alone, settings, Mix())
    assert metrics["shadow/maxpo/correlation"] == pytest.approx(1.0)
    assert metrics["shadow/maxpo/second_moment"] == pytest.approx(metrics["advantage/second_moment"])


def test_a_shadow_counts_only_groups_that_are_large_enough_for_it() -> None:
    groups = [scored([1, 0, 0, 1], [True, True, False, False]), scored([1, 0, 0, 0])]
    settings = AlgorithmConfig(advantage="grpo", k=2, group_size=4, shadow=["maxpo"])
    metrics = usable_metrics(assess(groups, settings, [2, 2], Mix()), settings, Mix())
    assert metrics["shadow/maxpo/nonzero"] == 1.0
    assert metrics["advantage/nonzero"] == 1.0


def test_no_correlation_where_nothing_varies() -> None:
    settings = AlgorithmConfig(k=2, group_size=6, shadow=["pkpo_loo", "rloo"])
    metrics = usable_metrics(assess([scored([0.1] * 6), scored([0.7] * 6)], settings, [2, 2], Mix()), settings, Mix())
    assert not any("correlation" in name for name in metrics)
    assert metrics["shadow/rloo/nonzero"] == 0.0


def test_a_second_estimator_is_mixed_in_by_schedule(tmp_path: Path) -> None:
    settings = config(mix_with="grpo", mix_weight=[0.0, 1.0])
    _, learner, lines = run(tmp_path, settings, FakeRollouts())
    assert [line["algorithm/mix_weight"] for line in steps_of(lines)] == [0.0, 0.5, 1.0]
    assert [b.mix.weight for b in learner.batches] == [0.0, 0.5, 1.0]


def test_the_weight_that_a_probe_finds_is_used_from_the_next_step_on(tmp_path: Path) -> None:
    """Never in the step of the probe, whose groups it depends on."""

    class Probing(FakeLearner):
        def update(self, batch: StepBatch) -> StepResult:
            found = {"probe/along": -1.0, "probe/apart": 4.0 * batch.step} if batch.step % 2 else {}
            return StepResult(metrics=dict(super().update(batch).metrics) | found)

    adaptive = {"advantage": "interpolated", "lam": "adaptive", "probe_every": 2}
    _, learner, lines = run(tmp_path / "a", config(**adaptive), FakeRollouts(), learner=Probing())
    assert [b.mix.lam for b in learner.batches] == [None, 0.25, 0.25]
    assert [line.get("algorithm/lam") for line in steps_of(lines)] == [None, 0.25, 0.25]
    _, learner, _ = run(tmp_path / "b", config(advantage="interpolated", lam="0.5"), FakeRollouts())
    assert [b.mix.lam for b in learner.batches] == [0.5] * 3


def test_the_weight_of_the_entropy_bonus_follows_the_entropy_and_survives_a_checkpoint(tmp_path: Path) -> None:
    entropies = [0.1, 0.1, 0.9, 0.9, 0.9, 0.1]

    class Told(FakeLearner):
        def update(self, batch: StepBatch) -> StepResult:
            found = {"policy/entropy": entropies[batch.step - 1]}
            return StepResult(metrics=dict(super().update(batch).metrics) | found)

    settings = config(entropy_target=0.5, entropy_step=0.25, entropy_coef=0.25)
    settings.run.steps = 6
    _, learner, lines = run(tmp_path, settings, FakeRollouts(), learner=Told())
    wanted = [0.25, 0.5, 0.75, 0.5, 0.25, 0.0]
    assert [b.entropy_coef for b in learner.batches] == wanted
    assert [line["algorithm/entropy_coef"] for line in steps_of(lines)] == wanted
    log = RunLog(tmp_path, tensorboard=False, save_rollouts=0)
    first, again = (
        Collector(settings, PromptStream([prompt("p")], seed=0), FakeRollouts(), log, Observer()) for _ in range(2)
    )
    first.learned({"policy/entropy": 0.1})
    again.load_state_dict(cast(Any, json.loads(json.dumps(first.state_dict()))))
    assert again.state_dict()["entropy_coef"] == 0.5
    _, learner, _ = run(tmp_path / "b", config(entropy_coef=0.25), FakeRollouts())
    assert [b.entropy_coef for b in learner.batches] == [None] * 3


def test_completions_near_the_limit_lose_reward() -> None:
    (group,) = [scored([1.0, 1.0, 0.0, 1.0], valid=[True, True, True, False])]
    lengths = (2, 6, 8, 8)
    completions = tuple(completion(tokens=n) for n in lengths)
    group = replace(group, group=replace(group.group, completions=completions))
    (less,) = penalise_length([group], 4, 0.5, 8)
    assert less.rewards == (1.0, 0.75, -0.5, 1.0)
    assert less.reward_parts["length_buffer"] == (0.0, -0.25, -0.5, 0.0)
    assert less.successes == group.successes
    assert penalise_length([group], None, 0.5, 8) == [group]


def test_shadow_estimators_are_logged_and_change_nothing(tmp_path: Path) -> None:
    shadows = ["grpo", "pkpo_loo_minus_one", "maxpo"]
    _, watched, lines = run(tmp_path / "a", config(shadow=shadows), FakeRollouts())
    _, alone, plain = run(tmp_path / "b", config(), FakeRollouts())
    assert [b.groups for b in watched.batches] == [b.groups for b in alone.batches]
    step = steps_of(lines)[0]
    for name in ("mean", "second_moment", "nonzero"):
        assert step[f"shadow/maxpo/{name}"] == pytest.approx(step[f"advantage/{name}"])
    assert step["shadow/maxpo/correlation"] == pytest.approx(1.0)
    assert step["shadow/grpo/mean"] == pytest.approx(0.0, abs=1e-9)
    assert 0.3 < step["shadow/grpo/correlation"] < 1
    assert step["shadow/pkpo_loo_minus_one/mean"] > 0.05
    assert step["shadow/pkpo_loo_minus_one/nonzero"] < step["advantage/nonzero"]
    assert not any(key.startswith("shadow/") for line in plain for key in line)


def test_a_shadow_that_refuses_is_counted_and_an_estimator_in_use_stops_the_run(tmp_path: Path) -> None:
    class Graded(FakeRollouts):
        def score(self, groups: Any) -> Any:
            halves = [[r / 2 for r in g.rewards] for g in super().score(groups)]
            return [scored(r, prompt=g.prompt, completions=g.completions) for r, g in zip(halves, groups, strict=True)]

    _, _, lines = run(tmp_path / "a", config(shadow=["maxrl"]), Graded())
    assert [line["shadow/maxrl/refused"] for line in steps_of(lines)] == [1.0] * 3
    assert not any(key.startswith("shadow/maxrl/m") for line in lines for key in line)
    with pytest.raises(RunError, match=r"step 1: maxrl: its formula is for rewards of 0 and 1.*0\.5"):
        run(tmp_path / "b", config(advantage="maxrl"), Graded())


def test_the_learner_is_told_which_samples_have_signal(tmp_path: Path) -> None:
    _, learner, _ = run(tmp_path, config(advantage="pkpo_loo_minus_one"), FakeRollouts())
    assert learner.batches
    for batch in learner.batches:
        rewards = torch.tensor([group.rewards for group in batch.groups])
        # This estimator is zero for failures, and where a success adds nothing to the best of the others.
        advantages = ADVANTAGES["pkpo_loo_minus_one"](rewards, torch.tensor(batch.k))
        assert torch.equal(torch.tensor(batch.signal), advantages != 0)
        assert not all(map(all, batch.signal))


def test_a_token_that_is_too_old_ends_the_run(tmp_path: Path) -> None:
    class Late(FakeRollouts):
        """Its engine keeps the weights of the first publish."""

        def generate(self, *args: Any, **kwargs: Any) -> list[Any]:
            self.version = 0
            return super().generate(*args, **kwargs)

    with pytest.raises(RunError, match=r"step 2: tokens of the versions \[0\] .* at version 1, .*max_staleness = 0"):
        run(tmp_path, config(), Late())


def test_an_evaluation_of_two_policies_ends_the_run(tmp_path: Path) -> None:
    class Late(FakeRollouts):
        def generate(self, *args: Any, **kwargs: Any) -> list[Any]:
            now, self.version = self.version, 0 if args[2] == "eval" else self.version
            groups = super().generate(*args, **kwargs)
            self.version = now
            return groups

    with pytest.raises(RunError, match=r"evaluation 2: tokens of the versions \[0\] .* and only 2 is evaluated"):
        run(tmp_path, config(), Late())


class Cutting(FakeRollouts):
    """Cuts each completion that is right."""

    def generate(self, *args: Any, **kwargs: Any) -> list[Group]:
        return [
            replace(g, completions=tuple(replace(c, finish_reason=REASONS[c.text]) for c in g.completions))
            for g in super().generate(*args, **kwargs)
        ]


REASONS = {"yes": "length", "no": "stop"}


@pytest.mark.parametrize("rule", ["train", "mask", "zero"])
def test_completions_that_were_cut_are_treated_in_training_and_not_in_evaluations(rule: Any, tmp_path: Path) -> None:
    settings = config(truncated=rule, drop_zero_signal=False)
    result, learner, lines = run(tmp_path, settings, Cutting(lambda p: 0.2))
    steps = [line for line in lines if "groups/kept" in line]
    cut = [sum(c.text == "yes" for g in b.groups for c in g.group.completions) for b in learner.batches]
    assert all(cut) and [line["completions/truncated"] * 32 for line in steps] == cut
    valid = [sum(map(sum, (g.valid for g in b.groups))) for b in learner.batches]
    assert [b.sampled_sequences for b in learner.batches] == valid
    assert valid == [32 - n if rule == "mask" else 32 for n in cut]
    assert all((line["reward/mean"] > 0) == (rule == "train") for line in steps)
    counted = {name: line[name] for line in steps for name in line if name.startswith("completions/truncated_")}
    assert counted == ({} if rule == "train" else {f"completions/truncated_{rule}": cut[-1]})
    assert result.evaluations[0].overall.estimates["pass@1"].value > 0

"""The figures of a probe against plain loops, and against expectations over all groups of a tiny policy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from maxpo.estimators.adaptive_lam import AdaptiveLam
from maxpo.estimators.advantages import ADVANTAGES
from maxpo.estimators.mixing import DEFAULTS, Parameters, estimator
from maxpo.estimators.names import ADVANTAGE_NAMES
from maxpo.estimators.probe import (
    FLOOR,
    SIZED,
    ProbeRequest,
    PromptFigures,
    PromptScores,
    add_sum,
    measure_prompt,
    probe_metrics,
    refusals,
)
from maxpo.evaluation.probe import ProbeReport, probe_report

K = 2
NAMES = tuple(ADVANTAGE_NAMES)
REQUEST = ProbeRequest(prompts=(), names=NAMES, ks=(), sizes=(3, 5))


def prompts(count: int, n: int, width: int, groups: int = 2) -> list[PromptScores]:
    """Prompts with random scores, rewards of 0 and 1, and one invalid sample each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for p in range(count):
        valid = torch.ones(groups, n, dtype=torch.bool)
        valid[0, p % n] = False
        rewards = (torch.rand(groups, n, generator=generator) < 0.4).double()
        scores = torch.randn(groups, n, width, generator=generator, dtype=torch.float64)
        made.append(
            PromptScores(
                prompt_id=str(p),
                scores=scores * valid[..., None],
                rewards=torch.where(valid, rewards, 0.0),
                valid=valid,
                successes=rewards > 0,
                tokens=torch.randint(1, 9, (groups, n), generator=generator),
            )
        )
    return made


def gradient(prompt: PromptScores, name: str, j: int) -> torch.Tensor:
    """(1/n) sum_i A_i s_i, one sample at a time."""
    a = estimator(name)(prompt.rewards[j : j + 1], K, prompt.valid[j : j + 1])[0]
    total = torch.zeros(prompt.scores.shape[2], dtype=torch.float64)
    for i in range(len(a)):
        total += a[i] * prompt.scores[j, i]
    return total / int(prompt.valid[j].sum())


def test_every_figure_against_vectors() -> None:
    own = prompts(3, 6, 11)
    figures, means = zip(*(measure_prompt(prompt, K, REQUEST) for prompt in own), strict=True)
    add_sum(figures, means, sum(means))  # type: ignore[arg-type]
    totals = {name: sum(gradient(p, name, j) for p in own for j in (0, 1)) / 2 for name in NAMES}
    for prompt, found in zip(own, figures, strict=True):
        for e, name in enumerate(NAMES):
            g = [gradient(prompt, name, j) for j in (0, 1)]
            middle = (g[0] + g[1]) / 2
            assert found.second[e] == pytest.approx(float(g[0] @ g[0] + g[1] @ g[1]) / 2)
            assert found.cross[e] == pytest.approx(float(g[0] @ g[1]))
            assert found.own[e] == pytest.approx(float(middle @ middle))
            assert found.toward[e] == pytest.approx(float(middle @ totals[name]))  # type: ignore[operator]
            a = estimator(name)(prompt.rewards, K, prompt.valid)
            assert found.trained[e] == float(prompt.tokens[(a != 0) & prompt.valid].sum())
        assert len(found.second) == len(NAMES) + 1
        assert found.tokens == float(prompt.tokens[prompt.valid].sum())
        pairs = [[gradient(prompt, name, j) for name in ("pkpo_loo_minus_one", "maxpo")] for j in (0, 1)]
        assert found.along == pytest.approx(sum(float(g @ (h - g)) for g, h in pairs) / 2)
        assert found.apart == pytest.approx(sum(float((h - g) @ (h - g)) for g, h in pairs) / 2)
        for wanted, energy in ((False, found.failure), (True, found.success)):
            members = prompt.scores[prompt.valid & (prompt.successes == wanted)]
            around = members - members.mean(0)
            assert energy == pytest.approx(float(around.square().sum()) / (len(members) - 1))


def included(rewards: list[float], i: int) -> float:
    """Mean of the best over the K-subsets with i."""
    subsets = [s for s in itertools.combinations(range(len(rewards)), K) if i in s]
    return sum(max(rewards[m] for m in s) for s in subsets) / len(subsets)


def test_the_floor_has_the_best_baseline_of_all_other_samples() -> None:
    (prompt,) = prompts(1, 5, 7)
    found, means = measure_prompt(prompt, K, REQUEST)
    everyone = [(j, i) for j in (0, 1) for i in range(5) if prompt.valid[j, i]]
    energy = {m: float(prompt.scores[m].square().sum()) for m in everyone}
    gradients = []
    for j in (0, 1):
        members = [i for i in range(5) if prompt.valid[j, i]]
        total = torch.zeros(7, dtype=torch.float64)
        for place, i in enumerate(members):
            rewards = [float(prompt.rewards[j, m]) for m in members]
            own = included(rewards, place)
            others = [m for m in everyone if m != (j, i)]
            baseline = 0.0
            for m in others:
                rewards[place] = float(prompt.rewards[m])
                baseline += energy[m] * included(rewards, place) / sum(energy[o] for o in others)
            total += K * (own - baseline) * prompt.scores[j, i] / len(members)
        gradients.append(total)
    torch.testing.assert_close(means[-1], sum(gradients) / 2)
    assert found.cross[-1] == pytest.approx(float(gradients[0] @ gradients[1]))


def test_one_group_for_each_prompt_has_no_split() -> None:
    (prompt,) = prompts(1, 6, 4, groups=1)
    figures, means = measure_prompt(prompt, K, REQUEST)
    assert (figures.cross, len(figures.second), len(means)) == ([], len(NAMES), len(NAMES))


def test_groups_of_all_samples_and_random_groups_of_other_sizes() -> None:
    (prompt,) = prompts(1, 6, 4)
    figures, _ = measure_prompt(prompt, K, replace(REQUEST, sizes=(11, 12)))
    valid = prompt.valid.flatten()
    rewards, scores = prompt.rewards.flatten()[valid], prompt.scores.flatten(0, 1)[valid]
    for place, name in enumerate(("maxpo", "pkpo_loo_minus_one")):
        g = ADVANTAGES[name](rewards[None], K)[0] @ scores / 11
        assert figures.by_size[11][place] == pytest.approx(float(g @ g))
    assert list(figures.by_size) == [11]  # one of the twelve samples is not valid
    # On average over many prompts, random groups have the second moment of groups of that size.
    many = prompts(200, 6, 4)
    found = [measure_prompt(p, K, replace(REQUEST, sizes=(5,)))[0] for p in many]
    for place, name in enumerate(("maxpo", "pkpo_loo_minus_one")):
        e = NAMES.index(name)
        drawn = sum(f.by_size[5][place] for f in found) / len(found)
        own = sum(float((gradient(p, name, 0)).square().sum()) for p in many) / len(found)  # groups of 5 valid samples
        assert drawn == pytest.approx(own, rel=0.15)
        assert e >= 0


LOGITS = torch.tensor([[0.4, -0.3], [-0.8, 0.5]], dtype=torch.float64)
"""Two prompts with two arms each: a failure, and a success with a score of its own."""


def every_pair(p: int, n: int) -> tuple[list[PromptScores], torch.Tensor]:
    """Every pair of groups of a prompt, with its probability. Both prompts share a parameter, which ties them."""
    probabilities = LOGITS[p].softmax(0)
    arms = torch.tensor(list(itertools.product(range(2), repeat=2 * n))).view(-1, 2, n)
    onehot = torch.nn.functional.one_hot(arms, 2).double() - probabilities
    scores = torch.zeros(*arms.shape, 4, dtype=torch.float64)
    scores[..., 2 * p : 2 * p + 2] = onehot
    scores[..., 0] += 0.5 * onehot[..., 0]
    pairs = [
        PromptScores(
            prompt_id=str(p),
            scores=s,
            rewards=a.double(),
            valid=torch.ones_like(a, dtype=torch.bool),
            successes=a > 0,
            tokens=torch.ones_like(a),
        )
        for a, s in zip(arms, scores, strict=True)
    ]
    return pairs, probabilities[arms].flatten(1).prod(1)


@pytest.mark.parametrize("name", ["maxpo", "pkpo_loo_minus_one", "interpolated", "kappa", "grpo"])
def test_within_and_between_are_unbiased(name: str) -> None:
    """Over all groups of both prompts, in expectation: exactly the variance within prompts and that between them."""
    n, e = 3, NAMES.index(name)
    within, between, squares, gradients = 0.0, 0.0, [], []
    sides = [every_pair(p, n) for p in (0, 1)]
    found = [[measure_prompt(pair, K, replace(REQUEST, sizes=())) for pair in pairs] for pairs, _ in sides]
    for p, (_, weight) in enumerate(sides):
        second = torch.tensor([f.second[e] for f, _ in found[p]], dtype=torch.float64)
        cross = torch.tensor([f.cross[e] for f, _ in found[p]], dtype=torch.float64)
        mean = weight @ torch.stack([m[e] for _, m in found[p]])
        gradients.append(mean)
        assert float(weight @ cross) == pytest.approx(float(mean @ mean))
        each = torch.stack([gradient(pair, name, 0) for pair in sides[p][0]])
        variance = float(weight @ (each - mean).square().sum(1))
        assert float(weight @ (second - cross)) == pytest.approx(variance)
        within += variance / 2
        squares.append(float(weight @ cross))
    # Of independent pairs of both prompts, one is drawn for each. The prompts' gradients vary around their mean.
    middle = sum(gradients) / 2
    between = sum(float((g - middle).square().sum()) for g in gradients) / 2  # type: ignore[operator]
    # The estimate divides by P - 1 = 1, so it is that of prompts drawn independently: twice the variance of two.
    expected = sum(squares) / 2 - float(gradients[0] @ gradients[1])
    assert expected == pytest.approx(2 * between)


def report(own: list[PromptScores]) -> ProbeReport:
    figures, means = zip(*(measure_prompt(prompt, K, REQUEST) for prompt in own), strict=True)
    add_sum(figures, means, sum(means))  # type: ignore[arg-type]
    given: dict[str, Any] = {"group_size": 6, "k": K, "objective": "max", "pass_rate": 0.4, "refused": {}}
    return probe_report(figures, NAMES, **given, dimensions=11, parameters=11)


def test_report() -> None:
    own = prompts(40, 6, 11)
    found = report(own)
    assert [row.name for row in found.estimators] == [*NAMES, FLOOR]
    by_name = {row.name: row for row in found.estimators}
    assert by_name["maxpo"].ratio.value == by_name["maxpo"].ratio.low == 1.0
    # Scores are drawn without regard to rewards: kappa is 1, no gradient has a mean, and centring pays.
    assert found.kappa is not None and found.kappa.low < 1 < found.kappa.high
    g = torch.stack([torch.stack([gradient(p, "maxpo", j) for j in (0, 1)]) for p in own])
    assert by_name["maxpo"].within.value == pytest.approx(float((g[:, 0] - g[:, 1]).square().sum(1).mean() / 2))
    middle = g.mean(1)
    cross = (g[:, 0] * g[:, 1]).sum(1).mean()
    among = (middle.sum(0).square().sum() - middle.square().sum()) / (40 * 39)
    assert by_name["maxpo"].between == pytest.approx(float(cross - among))
    assert by_name["pkpo_loo_minus_one"].ratio.low > 1
    assert found.advice.startswith("Use algorithm.advantage: maxpo.")
    assert by_name[FLOOR].within.value < by_name["pkpo_loo_minus_one"].within.value
    assert found.sizes["maxpo"].keys() == {3, 5}


def test_large_scores_of_failures_turn_the_advice() -> None:
    own = [replace(p, scores=torch.where(p.successes[..., None], p.scores, 4 * p.scores)) for p in prompts(40, 6, 11)]
    found = report(own)
    assert found.kappa is not None and found.kappa.low > 10
    assert found.advice.startswith("Use algorithm.advantage: pkpo_loo_minus_one.")
    assert found.lam.value < 0.3
    ratio = {row.name: row.ratio.value for row in found.estimators}
    assert max(ratio["kappa"], ratio[FLOOR]) < 1


def test_refusals_have_reasons() -> None:
    graded = torch.tensor([[0.5, 0.1, 0.9]])
    refused = refusals(NAMES, graded, 3, torch.ones(1, 3, dtype=torch.bool), DEFAULTS)
    assert {"maxrl", "kappa", "maxpo"} <= set(refused)
    assert "rewards of 0 and 1" in refused["maxrl"]


def test_figures_are_plain_numbers() -> None:
    (prompt,) = prompts(1, 6, 4)
    figures: PromptFigures = measure_prompt(prompt, K, REQUEST)[0]
    assert all(type(value) is float for value in (*figures.second, *figures.cross, figures.along, figures.apart))


def test_metrics_of_a_probe_during_a_training() -> None:
    figures = [measure_prompt(p, K, REQUEST)[0] for p in prompts(5, 8, 6, groups=1)]
    found = probe_metrics(figures, NAMES)
    assert found["probe/groups"] == 5
    assert found["probe/along"] == pytest.approx(sum(f.along for f in figures) / 5)
    assert found["probe/second_moment/maxpo"] == 1.0
    e, m = NAMES.index("grpo"), NAMES.index("maxpo")
    ratio = sum(f.second[e] for f in figures) / sum(f.second[m] for f in figures)
    assert found["probe/second_moment/grpo"] == pytest.approx(ratio)
    both = [f for f in figures if f.failure is not None and f.success is not None]
    assert len(both) > 0
    assert found["probe/kappa"] == pytest.approx(
        sum(f.failure for f in both if f.failure) / sum(f.success for f in both if f.success)
    )


def test_adaptive_lam_is_the_minimum_of_the_parabola_and_survives_a_checkpoint() -> None:
    own = [
        replace(p, scores=torch.where(p.successes[..., None], p.scores, 1.7 * p.scores))
        for p in prompts(30, 8, 6, groups=1)
    ]
    figures = [measure_prompt(p, K, REQUEST)[0] for p in own]
    lam = AdaptiveLam()
    assert lam() is None
    metrics = probe_metrics(figures, NAMES)
    lam.observe(metrics["probe/along"], metrics["probe/apart"])
    best = lam()
    assert best is not None and 0 < best < 1

    def second_moment(value: float) -> float:
        request = replace(REQUEST, names=(*SIZED, "interpolated"), parameters=Parameters(lam=value))
        return sum(measure_prompt(p, K, request)[0].second[2] for p in own)

    assert second_moment(best) < min(second_moment(best - 0.02), second_moment(best + 0.02))
    again = AdaptiveLam()
    again.load_state_dict(lam.state_dict())
    assert again() == best
    again.observe(1e9, 1e9)
    assert again() == 0.0

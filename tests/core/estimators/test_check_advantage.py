"""The measurement of estimators, and the command that shows it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from maxpo.estimators.advantages import ADVANTAGES
from maxpo.estimators.bandit import Bandit, bandit_of, bernoulli, compare
from maxpo.estimators.mixing import Parameters
from maxpo.estimators.names import WITH_OBJECTIVE

UNBIASED = {"maxpo", "pkpo", "pkpo_loo", "pkpo_loo_minus_one", "interpolated", "kappa"}
CENTRED = {"maxpo", "canonical", "passk_training", "rloo", "grpo", "dr_grpo", "maxrl"}
TEN_ARMS = bandit_of([i / 9 for i in range(10)], [1.0] * 10)


def test_bernoulli_by_hand() -> None:
    """g = (1/N) sum_i A_i (e_a - p) by c successes of 8, with the advantages written out in binomials."""
    n, k, p = 8, 4, 0.2
    values, weights = [], []
    for c in range(n + 1):
        success = k * math.comb(n - c, k) / math.comb(n - 1, k)
        others = math.comb(n - 1 - c, k) if c < n else 0
        lower = math.comb(n - 1 - c, k - 1) if c < n else 0
        failure = k * (others / math.comb(n - 1, k) - lower / math.comb(n - 1, k - 1))
        # The logit of the success arm; the other arm's is its negative.
        values.append((c * success * (1 - p) - (n - c) * failure * p) / n)
        weights.append(math.comb(n, c) * p**c * (1 - p) ** (n - c))
    mean = sum(w * v for w, v in zip(weights, values, strict=True))
    variance = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    assert mean == pytest.approx(k * (1 - p) ** (k - 1) * p * (1 - p))
    result = compare(bernoulli(p), n, k, names=["maxpo"], timed=False)
    assert (result.exact, result.groups) == (True, 9)
    assert result.measured[0].variance == pytest.approx(2 * variance)
    assert result.measured[0].signal_to_noise == pytest.approx(mean**2 / variance)
    assert result.measured[0].nonzero == pytest.approx(sum(weights[c] for c in range(1, 5)))


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [(8, 2, {"pkpo_loo": 0.0221, "pkpo_loo_minus_one": 0.0260, "maxpo": 0.0146})],
)
def test_variance_on_ten_graded_arms(n: int, k: int, expected: dict[str, float]) -> None:
    result = compare(TEN_ARMS, n, k, names=list(expected), timed=False)
    assert result.exact
    for row in result.measured:
        assert row.variance == pytest.approx(expected[row.estimator], rel=0.03)


@pytest.mark.parametrize("bandit", [bernoulli(0.3), bandit_of([0.0, 0.5, 1.0, 1.0], [5, 2, 1, 1])])
@pytest.mark.parametrize(("n", "k"), [(5, 2), (6, 4)])
def test_verdicts(bandit: Bandit, n: int, k: int) -> None:
    rows = compare(bandit, n, k, timed=False).measured
    assert [row.estimator for row in rows] == list(ADVANTAGES)
    taken = {row.estimator for row in rows if not row.refused}
    assert {row.estimator for row in rows if not row.refused and row.unbiased} == UNBIASED & taken
    assert {row.estimator for row in rows if not row.refused and row.centred} == CENTRED & taken
    canonical = next(row for row in rows if row.estimator == "canonical")
    assert canonical.scale == pytest.approx((1 - k / n) / k)
    assert canonical.angle == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("objective", ["max", "min", "top_m:2", "quantile:0.3", "lower_tail:0.4"])
def test_the_exact_gradient_is_that_of_enumeration(objective: str) -> None:
    from maxpo.estimators.objectives import rank_coefficients

    bandit = bandit_of([0.2, 1.0, -0.5, 1.0], [1, 2, 3, 4])
    logits = bandit.probabilities.log().requires_grad_()
    alpha = torch.tensor(rank_coefficients(objective, 3), dtype=torch.float64)
    draws = torch.tensor(list(itertools.product(range(4), repeat=3)))
    chance = logits.log_softmax(0)[draws].sum(1).exp()
    (want,) = torch.autograd.grad((chance * (bandit.rewards[draws].sort(1).values @ alpha)).sum(), logits)
    torch.testing.assert_close(bandit.gradient(3, objective), want)
    row = compare(bandit, 5, 3, parameters=Parameters(objective=objective), names=["maxpo"], timed=False).measured[0]
    assert row.unbiased


def test_variance_for_given_scores_by_hand() -> None:
    """Orthogonal scores: E sum_i A_i^2 e(r_i) / N^2, over the number of successes."""
    n, k, p, ratio = 6, 2, 0.3, 8.0
    want = 0.0
    for c in range(n + 1):
        gain = k * math.comb(n - c, k - 1) / math.comb(n - 1, k - 1)  # of a success, and 0 of a failure
        want += math.comb(n, c) * p**c * (1 - p) ** (n - c) * c * gain**2 / n**2
    rows = compare(bernoulli(p), n, k, kappa=ratio, parameters=Parameters(kappa=ratio), timed=False).measured
    variance = {row.estimator: row.variance for row in rows}
    assert variance["pkpo_loo_minus_one"] == pytest.approx(want)
    assert variance["kappa"] < want < variance["interpolated"] < variance["maxpo"]
    # The rule: centring wins if and only if kappa is below (2 - p) / (1 - p), for large groups.
    low, high = (2 - p) / (1 - p) * 0.7, (2 - p) / (1 - p) * 1.3
    for ratio, centring_wins in ((low, True), (high, False)):
        rows = compare(bernoulli(p), 64, 2, kappa=ratio, timed=False).measured
        variance = {row.estimator: row.variance for row in rows}
        assert (variance["maxpo"] < variance["pkpo_loo_minus_one"]) == centring_wins


def test_drawn_groups_agree_with_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = compare(TEN_ARMS, 4, 2, names=["maxpo", "rloo"], timed=False)
    monkeypatch.setattr("maxpo.estimators.bandit.MOST_CELLS", 0)
    drawn = compare(TEN_ARMS, 4, 2, names=["maxpo", "rloo"], draws=20_000, timed=False)
    assert (exact.exact, drawn.exact, drawn.groups) == (True, False, 20_000)
    for a, b in zip(exact.measured, drawn.measured, strict=True):
        assert b.variance == pytest.approx(a.variance, rel=0.05)
        assert a.unbiased == b.unbiased
    assert 0 < drawn.measured[0].bias <= 3 * drawn.measured[0].bias_error < 0.2


def test_command_prints_every_estimator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-advantage", "--estimator", "maxpo", "--n", "8", "--k", "4", "--bernoulli", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "max@4 with groups of N = 8, rewards: 1 with probability 0.3, else 0; all 9 possible groups" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1] and line[0] != " "}
    assert set(ADVANTAGES) <= set(rows)
    assert rows["maxpo"][1:5] == ["0", "1", "0.0", "yes"]
    assert rows["pkpo"][4] == "no"
    assert max(map(len, out.splitlines()[2:16])) <= 80


def test_command_measures_what_it_was_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The objective, the number of draws and their seed count, and the ratio is to the estimator that was named."""

    def measured(*arguments: str) -> dict[str, Any]:
        assert main(["check-advantage", "--n", "30", "--k", "3", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    file = tmp_path / "r.jsonl"
    outcomes = ["ok", "too_long", "ok", "ok", "ok", "ok"]
    rows = [{"reward": i / 5, "outcome": outcome} for i, outcome in enumerate(outcomes)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = measured("--rewards", str(file), "--draws", "500")
    assert "6 rewards, 6 different" in drawn["rewards"]
    assert (drawn["exact"], drawn["groups"]) == (False, 500)
    assert drawn["estimators"] != measured("--rewards", str(file), "--draws", "500", "--seed", "1")["estimators"]
    lowest = measured("--rewards", str(file), "--draws", "500", "--objective", "min")["estimators"]
    assert lowest[0]["estimator"] == "maxpo"
    assert {row["estimator"] for row in lowest if row.get("unbiased")} == set(WITH_OBJECTIVE)
    assert max(row["angle"] for row in lowest if "angle" in row) > 30
    assert main(["check-advantage", "--n", "8", "--k", "4", "--bernoulli", "0.2", "--estimator", "pkpo"]) == 0
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert (table["pkpo"][6], table["maxpo"][6]) == ("1.00", "0.31")


def test_large_k_is_measured_or_refused() -> None:
    row = compare(bernoulli(0.001), 1200, 1100, names=["maxpo"], timed=False, draws=2000).measured[0]
    assert row.unbiased
    assert 0.5 < row.scale < 2
    assert all(row.unbiased for row in compare(bernoulli(0.03), 128, 64, names=list(UNBIASED), timed=False).measured)
    with pytest.raises(ValueError, match="too small to compare"):
        compare(bernoulli(0.5), 128, 64)


def test_command_prints_json_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"reward": r, "outcome": "ok"} for r in (0.0, 0.5, 1.0, 1.0)] + [
        {"reward": None, "outcome": outcome} for outcome in ("timeout", "too_long")
    ]
    file = tmp_path / "step.jsonl"
    file.write_text("0.5\n\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check-advantage", "--n", "5", "--k", "2", "--rewards", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "5 rewards, 3 different" in result["rewards"]
    assert (result["exact"], result["groups"]) == (True, math.comb(7, 5))
    by_name = {row["estimator"]: row for row in result["estimators"]}
    assert by_name["maxpo"]["unbiased"]
    assert by_name["maxpo"]["centred"]
    assert not by_name["grpo"]["unbiased"]
    assert "rewards of 0 and 1" in by_name["maxrl"]["refused"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator", "ppo"], "--estimator ppo: no estimator has this name"),
        (["--n", "4", "--k", "5"], "--n 4 --k 5: allowed is"),
        (["--n", "4", "--k", "4"], "k = 4 with groups of N = 4. Allowed is 1 <= k <= 3"),
        (["--bernoulli", "1"], "--bernoulli 1: allowed is 0 < P < 1"),
        (["--objective", "best"], "there is no objective 'best'"),
        (["--objective", "min", "--estimator", "rloo"], "not to rloo"),
        (["--lam", "w"], "must be v or a number"),
        (["--lam", "nan"], "must be v or a number"),
        (["--kappa", "0"], "more than 0"),
        (["--rewards", "nowhere.txt"], "nowhere.txt"),
        (["--rewards", "huge.txt"], "huge.txt:2"),
        (["--objective", "top_m:" + "9" * 400], "M must be a whole number"),
        (["--seed", str(2**80)], "0 <= seed < 2**63"),
        (["--n", "128", "--k", "64", "--bernoulli", "0.5"], "too small to compare"),
        (["--rewards", "words.txt"], "words.txt:2: 'one' is neither a finite number"),
        (["--rewards", "nan.txt"], "nan.txt:2: 'NaN' is neither a finite number"),
        (["--rewards", "same.txt"], "2 rewards, 1 different; at least 2"),
    ],
)
def test_command_refuses(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("words", "1\none\n"), ("huge", "1\n1" + "0" * 400), ("nan", "1\nNaN\n"), ("same", "1\n1\n")):
        Path(f"{name}.txt").write_text(text)
    assert main(["check-advantage", *arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")

"""Comparison for maze.py and graded.py: one training loop, one choice of learning rates, one figure.

Every estimator trains the same small policy by plain policy gradient (surrogate: mean of A_i log pi(y_i), Adam).
The estimators differ in scale. So each estimator gets the same grid of learning rates, and uses the rate with the
highest max@K after the last step on tuning seeds, which are never reported. For target K the rate of every estimator
is chosen by max@K, also for estimators without K (rloo, grpo). The rate that ends highest need not rise fastest, so
compare speed with care.

The reported seeds are paired: every estimator gets the same tasks, initial parameters, prompts and random stream.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import common
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from maxpo.estimators.advantages import ADVANTAGES
from maxpo.estimators.pass_at_k import max_at_k

ESTIMATORS = ("maxpo", "pkpo_loo_minus_one", "pkpo_loo", "rloo", "grpo")
TARGETS = (4, 8)
REPORTED_K = (1, 4, 8)
GROUP_SIZE = 16
PROMPTS_PER_STEP = 8
EVAL_SAMPLES = 128
CURVE_POINTS = 16
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
TUNING_SEEDS = 20
FIRST_TUNING_SEED = 1000
"""First tuning seed. Reported seeds begin at 0."""
OVER_TRAINING = "max@K over training"


class Task(Protocol):
    """A batch of B task instances, one per seed, each with Q prompts."""

    weights: Tensor
    """Probability of each prompt, [B, Q]; rows sum to 1."""

    def first_parameters(self) -> Tensor:
        """Return the policy parameters before training, [B, ...]."""
        ...

    def rollout(self, parameters: Tensor, prompts: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n samples for each of the prompts [B, P]; return rewards and log-probabilities, both [B, P, n]."""
        ...


MakeTask = Callable[[Sequence[int]], Task]


def evaluate(task: Task, parameters: Tensor, rng: torch.Generator) -> np.ndarray:
    """Return the unbiased max@K from fresh samples of all prompts for every reported K, [B, K]."""
    batch, count = task.weights.shape
    with torch.no_grad():
        rewards, _ = task.rollout(parameters, torch.arange(count).expand(batch, count), EVAL_SAMPLES, rng)
    best = [max_at_k(rewards.flatten(0, 1), k)[0].view(batch, count) for k in REPORTED_K]
    return torch.stack([(task.weights * x).sum(1) for x in best], 1).numpy()


def train(task: Task, estimator: str, k: int, rate: float, points: Sequence[int]) -> np.ndarray:
    """Train all seeds of the task at once; return max@K after the steps in points, [points, B, K]."""
    parameters = task.first_parameters().requires_grad_()
    # Runs of a batch do not mix, because each has its own parameters and Adam works element by element.
    optimizer = torch.optim.Adam([parameters], lr=rate)
    rng, eval_rng = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    curve = [evaluate(task, parameters, eval_rng)] if 0 in points else []
    for step in range(1, points[-1] + 1):
        prompts = torch.multinomial(task.weights, PROMPTS_PER_STEP, replacement=True, generator=rng)
        rewards, logp = task.rollout(parameters, prompts, GROUP_SIZE, rng)
        advantages = ADVANTAGES[estimator](rewards.flatten(0, 1), k).view_as(rewards)
        loss = -(advantages * logp).mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in points:
            curve.append(evaluate(task, parameters, eval_rng))
    return np.stack(curve)


def eval_steps(steps: int) -> list[int]:
    """Return the steps after which a curve has a point, including 0."""
    return sorted({round(i * steps / CURVE_POINTS) for i in range(CURVE_POINTS + 1)})


def compare(make: MakeTask, seeds: int, tuning_seeds: int, steps: int) -> dict[str, Any]:
    """Choose learning rates on the tuning seeds, then train the reported seeds with them."""
    tuning = make(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tuning_seeds))
    reported = make(range(seeds))
    tuned: dict[str, dict[str, list[float]]] = {}
    runs: dict[str, np.ndarray] = {}
    trained: dict[tuple[str, int, float], np.ndarray] = {}
    chosen: dict[str, float] = {}
    for target in TARGETS:
        for estimator in ESTIMATORS:
            arm, k = f"{estimator} K={target}", target if uses_k(estimator) else 1
            row = f"{estimator} K={k}"
            if row not in tuned:
                ends = {str(rate): train(tuning, estimator, k, rate, [steps])[-1].mean(0) for rate in RATES}
                tuned[row] = {rate: end.round(4).tolist() for rate, end in ends.items()}
            chosen[arm] = max(RATES, key=lambda rate: tuned[row][str(rate)][REPORTED_K.index(target)])
            key = (estimator, k, chosen[arm])
            if key not in trained:
                trained[key] = train(reported, *key, eval_steps(steps))
            runs[arm] = trained[key]
            print(f"{arm:<24} learning rate {chosen[arm]:<5} max@{REPORTED_K} {runs[arm][-1].mean(0).round(4)}")
    return {
        "protocol": (__doc__ or "").strip(),
        "settings": {
            "seeds": seeds,
            "tuning_seeds": tuning_seeds,
            "steps": steps,
            "group_size": GROUP_SIZE,
            "prompts_per_step": PROMPTS_PER_STEP,
            "eval_samples_per_prompt": EVAL_SAMPLES,
            "learning_rates": list(RATES),
            "reported_k": list(REPORTED_K),
        },
        "tuning": {"meaning": "learning rate -> mean max@K after the last step on the tuning seeds", "runs": tuned},
        "arms": {arm: summary(chosen[arm], run) for arm, run in runs.items()},
        "maxpo_minus": differences(runs),
        "eval_steps": eval_steps(steps),
    }


def uses_k(estimator: str) -> bool:
    """Return True if the advantages depend on K."""
    return estimator not in ("rloo", "grpo")


def summary(rate: float, run: np.ndarray) -> dict[str, Any]:
    """Return the results of one arm: mean with 95 % interval over seeds, every seed, and the mean curve."""
    ends = {f"max@{k}": run[-1, :, i] for i, k in enumerate(REPORTED_K)}
    return {
        "learning_rate": rate,
        "final": {name: rounded(common.interval(x)) for name, x in ends.items()},
        "final_by_seed": {name: rounded(x) for name, x in ends.items()},
        "curve": {f"max@{k}": rounded(run[:, :, i].mean(1)) for i, k in enumerate(REPORTED_K)},
    }


def differences(runs: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Return maxpo minus every other estimator of the same target, paired by seed: mean and 95 % interval.

    There are two differences: after the last step, and of the mean of the target's curve, which a slow start lowers.
    """
    rows = {}
    for target in TARGETS:
        for estimator in ESTIMATORS[1:]:
            gap = runs[f"maxpo K={target}"] - runs[f"{estimator} K={target}"]
            row = {f"max@{k}": rounded(common.interval(gap[-1, :, i])) for i, k in enumerate(REPORTED_K)}
            row[OVER_TRAINING] = rounded(common.interval(gap[:, :, REPORTED_K.index(target)].mean(0)))
            rows[f"{estimator} K={target}"] = row
    return rows


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """Round to four decimals, which is below the noise of the evaluation."""
    return [round(float(x), 4) for x in values]


def table(results: dict[str, Any]) -> str:
    """Return all arms and differences as text."""
    names = [f"max@{k}" for k in REPORTED_K]
    head = f"{'lr tuned for max@K':<24}{'lr':>5}" + "".join(f"{name:>24}" for name in names)
    lines = [head]
    for arm, row in results["arms"].items():
        lines.append(f"{arm:<24}{row['learning_rate']:>5}" + "".join(cell(row["final"][name]) for name in names))
    lines += ["", f"{'maxpo minus':<29}" + "".join(f"{name:>24}" for name in [*names, OVER_TRAINING])]
    for arm, row in results["maxpo_minus"].items():
        lines.append(f"{arm:<29}" + "".join(cell(row[name], "+") for name in [*names, OVER_TRAINING]))
    return "\n".join(lines)


def cell(values: Sequence[float], sign: str = "") -> str:
    """Return mean [low, high] as text, in thousandths."""
    return "{:>24}".format("{0:{s}.3f} [{1:{s}.3f}, {2:{s}.3f}]".format(*values, s=sign))


def draw(results: dict[str, Any], reward: str) -> Figure:
    """Draw the curves of each target, final differences, and the cost in max@1 of an arm's max@8."""
    drawn, axes = common.figure(2, 2)
    for target, axis in zip(TARGETS, axes[0], strict=True):
        for estimator in ESTIMATORS:
            curve = results["arms"][f"{estimator} K={target}"]["curve"][f"max@{target}"]
            axis.plot(results["eval_steps"], curve, label=estimator, **look(estimator))
        axis.set(title=f"Tuned for max@{target}", xlabel="step", ylabel=f"{reward}@{target}")
    draw_differences(axes[1, 0], results, reward)
    for estimator in ESTIMATORS:
        marks = look(estimator) | {"linestyle": "none"}
        for target, fill in zip(TARGETS, ("none", "full"), strict=True):
            final = results["arms"][f"{estimator} K={target}"]["final"]
            x, y = final["max@1"], final["max@8"]
            bars = {"xerr": [[x[0] - x[1]], [x[2] - x[0]]], "yerr": [[y[0] - y[1]], [y[2] - y[0]]]}
            axes[1, 1].errorbar(x[0], y[0], **bars, **marks, fillstyle=fill, elinewidth=0.7)
    axes[1, 1].set(title="Last step; open: K = 4, filled: K = 8", xlabel=f"{reward}@1", ylabel=f"{reward}@8")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.set_layout_engine("constrained", wspace=0.06, hspace=0.06)
    drawn.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=4)
    return drawn


def look(estimator: str) -> dict[str, Any]:
    """Return line and marker. maxpo is drawn first and larger, so that it stays visible under an equal curve."""
    return common.LINES[estimator] | {"markersize": 8 if estimator == "maxpo" else 4.5}


def draw_differences(axis: Any, results: dict[str, Any], reward: str) -> None:
    """Draw the final max@K of maxpo minus that of the others of the same target. Right of 0, maxpo is better."""
    arms = [f"{estimator} K={target}" for target in TARGETS for estimator in ESTIMATORS[1:]]
    for place, arm in enumerate(arms):
        estimator, _, target = arm.partition(" K=")
        mean, low, high = results["maxpo_minus"][arm][f"max@{target}"]
        marks = look(estimator) | {"linestyle": "none"}
        axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **marks, capsize=3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axis.invert_yaxis()
    axis.set(title="maxpo minus ..., 95 % intervals", xlabel=f"difference in {reward}@K, K as tuned")


def main(name: str, about: str, make: MakeTask, *, reward: str, steps: int) -> None:
    """Run the command line of both scripts."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seeds", type=int, default=40, help="reported seeds")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--quick", action="store_true", help="seconds; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    sizes = (2, 2, 4) if args.quick else (args.seeds, TUNING_SEEDS, args.steps)
    results = {"task": about.strip()} | compare(make, *sizes)
    drawn = draw(results, reward)
    seconds = time.monotonic() - start
    print(f"\n{table(results)}\n\n{seconds:.0f} s")
    if not args.quick:
        print(common.save(name, results, seconds), common.save_figure(name, drawn), sep="\n")

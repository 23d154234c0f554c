"""The report of a probe: which estimator has the lowest variance on this model and these rewards, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maxpo.estimators.probe import FLOOR, SIZED, PromptFigures
from maxpo.evaluation.figures import Estimate
from maxpo.evaluation.report import BOOTSTRAP_RESAMPLES, middle


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorFigures:
    """Figures of one estimator. Ratios are to `maxpo`."""

    name: str
    within: Estimate
    """Variance of a group's gradient within prompts, the trace of its covariance."""
    ratio: Estimate
    """`within` divided by that of `maxpo`."""
    between: float
    """Variance of E[gradient | prompt] over prompts."""
    trained: float
    """Share of the sampled tokens with a non-zero advantage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Outcome of a probe."""

    prompts: int
    group_size: int
    k: int
    objective: str
    dimensions: int
    """Length of the vectors that stand for gradients."""
    parameters: int
    """Number of trained parameters. Equal to `dimensions`: nothing was projected."""
    estimators: tuple[EstimatorFigures, ...]
    """With `FLOOR` at the end."""
    refused: Mapping[str, str]
    kappa: Estimate | None
    """Squared score of a failure divided by that of a success. None: no prompt has two of both."""
    break_even: float
    """kappa above which an estimator that is not centred has the lower variance, for 0/1 rewards: (2 - p) / (1 - p)."""
    pass_rate: float
    lam: Estimate
    """Weight of `maxpo` in `interpolated` that has the lowest variance."""
    sizes: Mapping[str, Mapping[int, float]]
    """Estimator -> group size -> variance of the gradient of a batch of equally many samples, relative to
    `group_size`."""
    advice: str


def probe_report(
    figures: Sequence[PromptFigures],
    names: Sequence[str],
    *,
    group_size: int,
    k: int,
    objective: str,
    pass_rate: float,
    dimensions: int,
    parameters: int,
    refused: Mapping[str, str],
    seed: int = 0,
) -> ProbeReport:
    """Return the report over prompts with two groups each.

    Args:
        figures: Figures of at least two prompts.
        names: Estimators in the order of the figures, without `FLOOR`.
        group_size: N.
        k: K.
        objective: Statistic of K samples.
        pass_rate: Share of successes.
        dimensions: Length of the vectors that stand for gradients.
        parameters: Number of trained parameters.
        refused: Estimators that were left out, with the reason.
        seed: Seed of the bootstrap.
    """
    second, cross = (np.array([getattr(f, key) for f in figures]) for key in ("second", "cross"))
    within = second - cross  # [P, E]
    draws = np.random.default_rng(seed).integers(0, len(figures), (BOOTSTRAP_RESAMPLES, len(figures)))
    reference = within[:, names.index("maxpo")]
    between = _between(figures, cross)
    tokens = sum(f.tokens for f in figures)
    rows = [
        EstimatorFigures(
            name=name,
            within=_estimate(within[:, e], None, draws),
            ratio=_estimate(within[:, e], reference, draws),
            between=float(between[e]),
            trained=sum(f.trained[e] for f in figures) / tokens if tokens else 0.0,
        )
        for e, name in enumerate([*names, FLOOR])
    ]
    lam = _estimate(-np.array([f.along for f in figures]), np.array([f.apart for f in figures]), draws)
    return ProbeReport(
        prompts=len(figures),
        group_size=group_size,
        k=k,
        objective=objective,
        dimensions=dimensions,
        parameters=parameters,
        estimators=tuple(rows),
        refused=dict(refused),
        kappa=_kappa(figures, seed),
        break_even=(2 - pass_rate) / (1 - pass_rate) if pass_rate < 1 else math.inf,
        pass_rate=pass_rate,
        lam=lam,
        sizes=_sizes(figures, names, between, cross, group_size),
        advice=advice(rows, lam),
    )


def advice(rows: Sequence[EstimatorFigures], lam: Estimate) -> str:
    """Return one sentence: the estimator to use, and why."""
    by_name = {row.name: row for row in rows}
    centred, other = by_name["maxpo"], by_name["pkpo_loo_minus_one"]
    tokens = f"and trains {100 * other.trained:.0f} % of the tokens instead of {100 * centred.trained:.0f} %"
    ratio = f"{other.ratio.value:.2f} times [{other.ratio.low:.2f}, {other.ratio.high:.2f}] the variance of maxpo"
    if other.ratio.high < 1:
        return f"Use algorithm.advantage: pkpo_loo_minus_one. It has {ratio} within prompts, {tokens}."
    if other.ratio.low > 1:
        return f"Use algorithm.advantage: maxpo. pkpo_loo_minus_one has {ratio} within prompts."
    middle = min(max(lam.value, 0.0), 1.0)
    return (
        f"Level: pkpo_loo_minus_one has {ratio} within prompts, {tokens}. algorithm.advantage: interpolated with "
        f"algorithm.lam: {middle:.2f} has the lowest variance here."
    )


def _estimate(top: NDArray[np.float64], bottom: NDArray[np.float64] | None, draws: NDArray[np.int64]) -> Estimate:
    """Return the ratio of two means over prompts, or a mean, with its interval from bootstrap draws of the prompts."""
    values = top[draws].mean(1)
    value = float(top.mean())
    if bottom is not None:
        below = bottom[draws].mean(1)
        values = values[below > 0] / below[below > 0]
        value = value / float(bottom.mean()) if bottom.mean() > 0 else math.nan
    low, high = middle(values) if len(values) else (math.nan, math.nan)
    return Estimate(value=value, low=low, high=high)


def _kappa(figures: Sequence[PromptFigures], seed: int) -> Estimate | None:
    pairs = [(f.failure, f.success) for f in figures if f.failure is not None and f.success is not None]
    if not pairs:
        return None
    failure, success = np.array(pairs).T
    draws = np.random.default_rng(seed).integers(0, len(pairs), (BOOTSTRAP_RESAMPLES, len(pairs)))
    return _estimate(failure, success, draws)


def _between(figures: Sequence[PromptFigures], cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance of E[g | prompt] over prompts: E|E[g | prompt]|^2 - |E g|^2, both without bias."""
    prompts = len(figures)
    toward, own = (np.array([getattr(f, key) for f in figures]) for key in ("toward", "own"))
    return cross.mean(0) - (toward - own).mean(0) / (prompts - 1)


def _sizes(
    figures: Sequence[PromptFigures],
    names: Sequence[str],
    between: NDArray[np.float64],
    cross: NDArray[np.float64],
    group_size: int,
) -> dict[str, dict[int, float]]:
    """Return (B + V(n)) n for each measured group size n, divided by that of `group_size`."""
    found: dict[str, dict[int, float]] = {}
    for place, name in enumerate(SIZED):
        e = names.index(name)
        own = {size for f in figures for size in f.by_size}
        costs: dict[int, float] = {}
        for size in sorted(own):
            able = [i for i, f in enumerate(figures) if size in f.by_size]
            within = np.mean([figures[i].by_size[size][place] - cross[i, e] for i in able])
            costs[size] = float((between[e] + within) * size)
        at_own = (between[e] + float(np.mean([f.second[e] - cross[i, e] for i, f in enumerate(figures)]))) * group_size
        found[name] = {size: cost / at_own for size, cost in costs.items()}
    return found

"""Objectives: statistics of K independent samples, named in one word such as `max` or `top_m:2`.

Every objective is a weighted sum of the sorted K-sample (an L-statistic, arXiv 2606.06096), with weights that add up to
1. The module is pure Python, so that the settings of a run can be checked without torch.
"""

from __future__ import annotations

import math

OBJECTIVES: dict[str, str] = {
    "max": "the best of K: max@K, or pass@K with 0/1 rewards",
    "min": "the worst of K",
    "mean": "the mean reward, independent of K",
    "median": "quantile:0.5",
    "top_m:M": "the mean of the best M of K, 1 <= M <= K",
    "bottom_m:M": "the mean of the worst M of K, 1 <= M <= K",
    "quantile:Q": "the Q-quantile of K, 0 <= Q <= 1, linear between two samples",
    "lower_tail:Q": "the mean of the lowest share Q of K, 0 < Q <= 1, counting the sample at the edge in part (CVaR)",
}
"""Notation of each objective -> its meaning."""


def rank_coefficients(objective: str, k: int) -> list[float]:
    """Return the weight of each of K sorted samples, worst first. The objective is the weighted sum.

    Args:
        objective: Notation of `OBJECTIVES`.
        k: Number of samples, at least 1.

    Raises:
        ValueError: The objective does not exist, its argument is wrong, or its argument does not fit K.
    """
    name, argument = parse(objective)
    match name:
        case "max":
            return [0.0] * (k - 1) + [1.0]
        case "min":
            return [1.0] + [0.0] * (k - 1)
        case "mean":
            return [1 / k] * k
        case "top_m" | "bottom_m":
            m = int(argument)
            if m > k:
                raise ValueError(f"objective {objective}: M = {m} of K = {k}. Allowed is M <= K")
            worst = [1 / m] * m + [0.0] * (k - m)
            return worst if name == "bottom_m" else worst[::-1]
        case "lower_tail":
            samples = argument * k
            return [min(1.0, max(0.0, samples - rank)) / samples for rank in range(k)]
        case _:
            return _quantile(argument, k)


def parse(objective: str) -> tuple[str, float]:
    """Split an objective into its name and argument, 0 without an argument. `median` is the 0.5 quantile.

    Raises:
        ValueError: The objective does not exist, or its argument is wrong.
    """
    name, _, text = objective.partition(":")
    if objective in ("max", "min", "mean"):
        return objective, 0.0
    if objective == "median":
        return "quantile", 0.5
    if name in ("top_m", "bottom_m"):
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
            raise ValueError(f"objective {objective}: M must be a whole number of at least 1")
        return name, float(text)
    if name in ("quantile", "lower_tail"):
        try:
            q = float(text)
        except ValueError:
            q = math.nan
        if not (0 <= q <= 1 and (q > 0 or name == "quantile")):
            raise ValueError(
                f"objective {objective}: Q must be a number, 0 {'<' * (name != 'quantile') or '<='} Q <= 1"
            )
        return name, q
    raise ValueError(f"there is no objective {objective!r}. Known objectives: {', '.join(OBJECTIVES)}")


def _quantile(q: float, k: int) -> list[float]:
    below = min(int(q * (k - 1)), k - 1)
    part = q * (k - 1) - below
    weights = [0.0] * k
    weights[below] = 1 - part
    if part:
        weights[below + 1] = part
    return weights

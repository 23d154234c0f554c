"""What is optimised: a statistic of K independent samples, named in one word such as `max` or `top_m:2`.

Every one is a weighted sum of the sorted K-sample (an L-statistic, arXiv 2606.06096), its weights adding up to 1.
Pure Python, so that the settings of a run can be checked without torch.
"""

from __future__ import annotations

import math

OBJECTIVES: dict[str, str] = {
    "max": "the best of K: max@K, or pass@K with 0/1 rewards",
    "min": "the worst of K",
    "mean": "the mean reward, whatever K is",
    "median": "quantile:0.5",
    "top_m:M": "the mean of the best M of K, 1 <= M <= K",
    "bottom_m:M": "the mean of the worst M of K, 1 <= M <= K",
    "quantile:Q": "the Q-quantile of K, 0 <= Q <= 1, linear between two samples",
    "lower_tail:Q": "the mean of the lowest share Q of K, 0 < Q <= 1; the sample at its edge counts in part (CVaR)",
}
"""How each is written -> what it is."""


def rank_coefficients(objective: str, k: int) -> list[float]:
    """Weight of each of K sorted samples, worst first; the objective is the weighted sum.

    Args:
        objective: as in `OBJECTIVES`.
        k: size of the sample, at least 1.

    Raises:
        ValueError: saying what is wrong with the objective, or with it at this K.
    """
    name, _, argument = objective.partition(":")
    match name:
        case "max" | "min" | "mean" | "median" if not argument:
            return {
                "max": [0.0] * (k - 1) + [1.0],
                "min": [1.0] + [0.0] * (k - 1),
                "mean": [1 / k] * k,
                "median": _quantile(0.5, k),
            }[name]
        case "top_m" | "bottom_m":
            m = int(argument) if argument.isascii() and argument.isdigit() else 0
            if not 1 <= m <= k:
                raise ValueError(f"objective {objective}: M must be a whole number, 1 <= M <= K = {k}")
            worst = [1 / m] * m + [0.0] * (k - m)
            return worst if name == "bottom_m" else worst[::-1]
        case "quantile":
            return _quantile(_share(objective, argument, lowest_allowed=True), k)
        case "lower_tail":
            samples = _share(objective, argument, lowest_allowed=False) * k
            return [min(1.0, max(0.0, samples - rank)) / samples for rank in range(k)]
        case _:
            raise ValueError(f"there is no objective {objective!r}; there are {', '.join(OBJECTIVES)}")


def _share(objective: str, argument: str, *, lowest_allowed: bool) -> float:
    try:
        q = float(argument)
    except ValueError:
        q = math.nan
    if not (0 <= q <= 1 and (lowest_allowed or q > 0)):
        raise ValueError(f"objective {objective}: Q must be a number, 0 {'<=' if lowest_allowed else '<'} Q <= 1")
    return q


def _quantile(q: float, k: int) -> list[float]:
    position = q * (k - 1)
    below = min(int(position), k - 1)
    part = position - below
    weights = [0.0] * k
    weights[below] = 1 - part
    if part:
        weights[below + 1] = part
    return weights

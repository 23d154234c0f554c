"""Checks of the settings that choose estimator, objective and K. Part of `configcheck.py`."""

from __future__ import annotations

from collections.abc import Callable

from maxpo.config import LEAVES_ONE_OUT, AlgorithmConfig, Config
from maxpo.objective import parse


def is_objective(value: str) -> bool:
    """Whether there is such an objective, its argument included."""
    try:
        parse(value)
    except ValueError:
        return False
    return True


def ks_of(algorithm: AlgorithmConfig) -> list[int]:
    """Every K that the settings name."""
    return [algorithm.k] if algorithm.k_schedule == "constant" else algorithm.k_values


_K_KEYS = ("algorithm.k", "algorithm.group_size", "algorithm.advantage")
ESTIMATOR_COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        _K_KEYS,
        lambda c: c.algorithm.advantage not in LEAVES_ONE_OUT or 1 <= c.algorithm.k < c.algorithm.group_size,
        "algorithm.k must be at least 1 and below algorithm.group_size: each advantage leaves one completion out.",
    ),
    (
        _K_KEYS,
        lambda c: c.algorithm.advantage in LEAVES_ONE_OUT or 1 <= c.algorithm.k <= c.algorithm.group_size,
        "algorithm.k must be at least 1 and at most algorithm.group_size.",
    ),
    (
        ("algorithm.k_values", "algorithm.k_schedule", "algorithm.group_size"),
        lambda c: (
            c.algorithm.k_schedule == "constant" or all(1 <= k < c.algorithm.group_size for k in c.algorithm.k_values)
        ),
        "Each of algorithm.k_values must be at least 1 and below algorithm.group_size.",
    ),
    (
        ("algorithm.k_values", "algorithm.k_schedule"),
        lambda c: c.algorithm.k_schedule not in ("linear", "adaptive") or len(c.algorithm.k_values) == 2,
        "algorithm.k_values must be two numbers: first and last K for linear, smallest and largest for adaptive.",
    ),
    (
        ("algorithm.k_values", "algorithm.k_schedule"),
        lambda c: c.algorithm.k_schedule != "adaptive" or c.algorithm.k_values == sorted(c.algorithm.k_values),
        "For adaptive, algorithm.k_values are the smallest and the largest K, in this order.",
    ),
    (
        ("algorithm.k_steps", "algorithm.k_values", "algorithm.k_schedule"),
        lambda c: (
            c.algorithm.k_schedule != "stepwise"
            or (
                len(c.algorithm.k_steps) == len(c.algorithm.k_values) - 1
                and c.algorithm.k_steps == sorted(set(c.algorithm.k_steps))
                and all(step > 1 for step in c.algorithm.k_steps)
            )
        ),
        "For stepwise, algorithm.k_steps must be rising steps from 2 on, one fewer than algorithm.k_values.",
    ),
    (
        ("algorithm.objective", "algorithm.advantage"),
        lambda c: c.algorithm.objective == "max" or c.algorithm.advantage == "maxpo",
        "Only the advantage maxpo knows objectives other than max.",
    ),
    (
        ("algorithm.objective", "algorithm.k", "algorithm.k_values", "algorithm.k_schedule"),
        lambda c: parse(c.algorithm.objective)[1] <= min(ks_of(c.algorithm), default=1),
        "The M of top_m or bottom_m must be at most every K that is used.",
    ),
    (
        ("algorithm.mix_with", "algorithm.k", "algorithm.group_size"),
        lambda c: c.algorithm.mix_with not in LEAVES_ONE_OUT or c.algorithm.k < c.algorithm.group_size,
        "algorithm.k must be below algorithm.group_size for the estimator that is mixed in, too.",
    ),
)
"""Keys that are read, what must hold for the config, and what is said otherwise."""

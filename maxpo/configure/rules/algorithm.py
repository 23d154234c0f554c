"""Checks of the settings that choose estimator, objective and K."""

from __future__ import annotations

from maxpo.config import AlgorithmConfig
from maxpo.configure.rules import Combination
from maxpo.estimators.names import BEYOND_K, WITH_OBJECTIVE, fixed_lam
from maxpo.estimators.objectives import parse


def is_objective(value: str) -> bool:
    """Return True if the objective exists and its argument is valid."""
    try:
        parse(value)
    except ValueError:
        return False
    return True


def is_lam(value: str) -> bool:
    """Return True if the weight of `interpolated` is known or a number."""
    if value == "adaptive":
        return True
    try:
        fixed_lam(value)
    except ValueError:
        return False
    return True


def ks_of(algorithm: AlgorithmConfig) -> list[int]:
    """Return every K that the settings name."""
    return [algorithm.k] if algorithm.k_schedule == "constant" else algorithm.k_values


def fits(k: int, group_size: int, advantage: str | None) -> bool:
    """Return True if the estimator accepts this K. Estimators that do not use K accept any K."""
    return advantage not in BEYOND_K or 1 <= k <= group_size - BEYOND_K[advantage]


def constant_k_fits(algorithm: AlgorithmConfig, advantage: str | None) -> bool:
    """Return True if the estimator accepts `algorithm.k`.

    Always True if a schedule replaces `algorithm.k`. Also True if `algorithm.k` is out of the bounds that all
    estimators share, because another check reports this mistake.
    """
    return (
        not 1 <= algorithm.k <= algorithm.group_size
        or algorithm.k_schedule != "constant"
        or fits(algorithm.k, algorithm.group_size, advantage)
    )


ESTIMATOR_COMBINATIONS: tuple[Combination, ...] = (
    (
        ("algorithm.k", "algorithm.group_size"),
        lambda c: 1 <= c.algorithm.k <= c.algorithm.group_size,
        "algorithm.k must be at least 1 and at most algorithm.group_size: the metric reward/max@K always uses K.",
    ),
    (
        ("algorithm.k", "algorithm.group_size", "algorithm.advantage", "algorithm.k_schedule"),
        lambda c: constant_k_fits(c.algorithm, c.algorithm.advantage),
        "algorithm.k must be below algorithm.group_size: each advantage leaves one completion out.",
    ),
    (
        ("algorithm.mix_with", "algorithm.k", "algorithm.group_size", "algorithm.k_schedule"),
        lambda c: constant_k_fits(c.algorithm, c.algorithm.mix_with),
        "algorithm.k must be below algorithm.group_size for the estimator in algorithm.mix_with, too.",
    ),
    (
        (
            *("algorithm.k_values", "algorithm.k_schedule", "algorithm.group_size"),
            *("algorithm.advantage", "algorithm.mix_with"),
        ),
        lambda c: (
            c.algorithm.k_schedule == "constant"
            or all(
                k >= 1 and fits(k, c.algorithm.group_size, name)
                for k in c.algorithm.k_values
                for name in (c.algorithm.advantage, c.algorithm.mix_with)
            )
        ),
        "Each of algorithm.k_values must be at least 1 and at most algorithm.group_size, or below algorithm.group_size "
        "if an advantage leaves one completion out.",
    ),
    (
        ("algorithm.k_schedule", "algorithm.advantage", "algorithm.mix_with"),
        lambda c: (
            c.algorithm.k_schedule == "constant"
            or any(name in BEYOND_K for name in (c.algorithm.advantage, c.algorithm.mix_with))
        ),
        "No estimator here uses K, so algorithm.k_schedule must be constant.",
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
        ("algorithm.k_steps", "algorithm.k_values", "algorithm.k_schedule", "run.steps"),
        lambda c: (
            c.algorithm.k_schedule != "stepwise"
            or (
                len(c.algorithm.k_steps) == len(c.algorithm.k_values) - 1
                and c.algorithm.k_steps == sorted(set(c.algorithm.k_steps))
                and all(1 < step <= c.run.steps for step in c.algorithm.k_steps)
            )
        ),
        "For stepwise, algorithm.k_steps must be rising steps from 2 to run.steps, one fewer than algorithm.k_values.",
    ),
    (
        ("algorithm.objective", "algorithm.advantage", "algorithm.mix_with"),
        lambda c: (
            c.algorithm.objective == "max"
            or not {c.algorithm.advantage, c.algorithm.mix_with}.isdisjoint(WITH_OBJECTIVE)
        ),
        f"Objectives other than max are for the advantages {', '.join(WITH_OBJECTIVE)}.",
    ),
    (
        ("algorithm.objective", "algorithm.k", "algorithm.k_values", "algorithm.k_schedule"),
        lambda c: parse(c.algorithm.objective)[1] <= min(ks_of(c.algorithm), default=1),
        "The M of top_m or bottom_m must be at most every K that is used.",
    ),
    (
        ("algorithm.lam", "algorithm.probe_every", "algorithm.advantage", "algorithm.mix_with"),
        lambda c: (
            c.algorithm.lam != "adaptive"
            or "interpolated" not in (c.algorithm.advantage, c.algorithm.mix_with)
            or c.algorithm.probe_every > 0
        ),
        "algorithm.lam = adaptive needs probes: set algorithm.probe_every.",
    ),
    (
        ("algorithm.probe_every", "learner.zero_stage", "learner.sequence_parallel"),
        lambda c: not c.algorithm.probe_every or (c.learner.zero_stage < 3 and c.learner.sequence_parallel == 1),
        "A probe takes the gradients of single samples, so it needs learner.zero_stage 0 to 2 and "
        "learner.sequence_parallel 1.",
    ),
    (
        ("algorithm.loss", "algorithm.sequence_mask", "learner.sequence_parallel"),
        lambda c: c.learner.sequence_parallel == 1 or not (c.algorithm.loss == "gspo" or c.algorithm.sequence_mask),
        "The ratio of a sequence needs all its tokens on one rank: learner.sequence_parallel must be 1.",
    ),
    (
        ("algorithm.mix_with", "algorithm.advantage"),
        lambda c: c.algorithm.mix_with != c.algorithm.advantage,
        "algorithm.mix_with must be another estimator than algorithm.advantage, or null.",
    ),
)

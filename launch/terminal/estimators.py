"""Measurements of the advantage estimators, as a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict

from rich.table import Table

from maxpo.estimators.bandit import Comparison, Measured


def estimator_table(result: Comparison) -> Table:
    """Return a table with a row for each estimator; the first, with which the others are compared, is bold."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("estimator", no_wrap=True)
    for column in ("bias", "scale", "angle", "centred", "variance", "ratio", "snr", "non-0", "us"):
        table.add_column(column, justify="right", no_wrap=True)
    reference = result.measured[0]
    for row in result.measured:
        if not row.refused:
            table.add_row(*_cells(row, reference, exact=result.exact), style="bold" if row is reference else "")
    return table


def _cells(row: Measured, reference: Measured, *, exact: bool) -> list[str]:
    comparable = row.unbiased and reference.unbiased
    return [
        row.estimator,
        ("0" if exact else f"0±{row.bias_error:.1g}") if row.unbiased else f"{row.bias:.3g}",
        f"{row.scale:.3g}",
        f"{row.angle:.1f}",
        "yes" if row.centred else "no",
        f"{row.variance:.3g}",
        f"{row.variance / reference.variance:.2f}" if comparable else "",
        "" if math.isnan(row.signal_to_noise) else f"{row.signal_to_noise:.3g}",
        f"{100 * row.nonzero:.0f}%",
        f"{row.microseconds:.2f}",
    ]


def legend(goal: str, reference: str, kappa: float | None) -> str:
    """Return one line for each column of the table.

    Args:
        goal: name of the objective, for example max@4.
        reference: name of the estimator with which the others are compared.
        kappa: squared score of the lowest reward divided by that of the highest. None: that of a softmax.
    """
    of_what = "total" if kappa is None else f"orthogonal scores, kappa = {kappa:g}"
    return (
        f"bias      |mean gradient - gradient of {goal}| / |gradient|; 0 is unbiased\n"
        "scale     length of the mean gradient along the right one; angle: degrees between them\n"
        "          (softmax over the different rewards: with two there is only one direction)\n"
        "centred   every group's advantages add up to 0\n"
        f"variance  of one group's gradient, {of_what}; ratio: to {reference}'s, where both are unbiased\n"
        "snr       |mean gradient|^2 / variance; non-0: samples whose advantage is not 0\n"
        "us        time for one group, in a batch of 256 on this machine"
    )


def estimators_as_json(result: Comparison, **given: object) -> dict[str, object]:
    """Return the measurements as plain JSON values, after what was given on the command line."""
    rows = [
        {"estimator": row.estimator, "refused": row.refused}
        if row.refused
        else {name: value if value == value else None for name, value in asdict(row).items() if name != "refused"}
        | {"centred": row.centred}
        for row in result.measured
    ]
    return given | {"exact": result.exact, "groups": result.groups, "estimators": rows}

"""The report of a probe as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from maxpo.evaluation.figures import Estimate
from maxpo.evaluation.probe import ProbeReport


def probe_tables(report: ProbeReport) -> Iterator[Table | str]:
    """Yield what `maxpo probe` prints: the estimators, the numbers that decide between them, and the group sizes."""
    goal = f"max@{report.k}" if report.objective == "max" else f"{report.objective} of {report.k} samples"
    exact = report.dimensions == report.parameters
    yield (
        f"{goal} with groups of N = {report.group_size}: 2 groups of {report.prompts} prompts, pass rate "
        f"{100 * report.pass_rate:.1f} %; gradients of {report.parameters:,} parameters"
        + ("" if exact else f", projected to {report.dimensions:,} numbers")
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("estimator", no_wrap=True)
    for column in ("within prompts", "to maxpo's", "between", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.estimators:
        table.add_row(
            row.name,
            _interval(row.within, 3),
            _interval(row.ratio, 3),
            f"{row.between:.3g}",
            f"{100 * row.trained:.0f}%",
        )
    yield table
    yield (
        "within    variance of a group's gradient for one prompt, with 95 % intervals over prompts\n"
        "between   variance of the prompts' mean gradients, the same for all unbiased estimators but for noise\n"
        "tokens    with an advantage that is not 0; floor: the best baseline, known to no estimator"
    )
    kappa = "not measured: no prompt has two successes and two failures"
    if report.kappa is not None:
        kappa = f"{_interval(report.kappa, 3)}; centring pays below {report.break_even:.2f} with rewards of 0 and 1"
    yield f"kappa     {kappa}\nlam*      {_interval(report.lam, 2)}, the best weight of maxpo in interpolated"
    yield _sizes(report)
    for name, reason in report.refused.items():
        yield f"left out  {name}: {reason.removeprefix(f'{name}: ')}"


def _sizes(report: ProbeReport) -> Table:
    """Return the variance of a batch's gradient for other group sizes."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"equal samples, 1 = N of {report.group_size}", no_wrap=True)
    sizes = sorted({size for costs in report.sizes.values() for size in costs})
    for size in sizes:
        table.add_column(f"N={size}", justify="right", no_wrap=True)
    for name, costs in report.sizes.items():
        table.add_row(name, *(f"{costs[size]:.2f}" if size in costs else "" for size in sizes))
    return table


def _interval(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}g} [{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"

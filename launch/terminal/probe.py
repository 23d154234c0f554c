"""The report of a probe as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from maxpo.estimators.names import UNBIASED
from maxpo.estimators.probe import FLOOR
from maxpo.evaluation.figures import Estimate
from maxpo.evaluation.probe import ProbeReport
from maxpo.plugins import short_name


def probe_tables(report: ProbeReport) -> Iterator[Table | str]:
    """Yield what `maxpo probe` prints: the estimators, the numbers that decide between them, and the group sizes."""
    goal = f"max@{report.k}" if report.objective == "max" else f"{report.objective} of {report.k} samples"
    exact = report.dimensions == report.parameters
    yield (
        f"{goal}, N = {report.group_size}: 2 groups of {report.prompts} prompts, pass rate "
        f"{100 * report.pass_rate:.1f} %\ngradients of {report.parameters:,} parameters"
        + ("" if exact else f", projected to {report.dimensions:,} numbers")
    )
    yield _estimators(report)
    yield (
        "within    variance of a group's gradient for one prompt\n"
        "ratio     within, to maxpo's, with 95 % interval over prompts; only for the unbiased\n"
        "between   variance of the prompts' mean gradients: one number for all unbiased, and noise\n"
        "tokens    those with an advantage that is not 0\n"
        "floor     the best baseline for each prompt, known to no estimator"
    )
    kappa = "not measured: no prompt has two successes and two failures"
    if report.kappa is not None:
        kappa = f"{_interval(report.kappa)}; with 0/1 rewards centring pays below {report.break_even:.2f}"
    yield f"kappa     {kappa}\nlam*      {_interval(report.lam)}, the best algorithm.lam of interpolated"
    yield _sizes(report)
    for name, reason in report.refused.items():
        yield f"left out  {name}: {reason.removeprefix(f'{name}: ')}"


def _estimators(report: ProbeReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("estimator", no_wrap=True)
    for column in ("within", "ratio", "between", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.estimators:
        compared = row.name in (*UNBIASED, FLOOR) or ":" in row.name
        ratio = _interval(row.ratio) if compared else ""
        cells = (f"{row.within.value:.3g}", ratio, f"{row.between:.3g}", f"{100 * row.trained:.0f}%")
        table.add_row(short_name(row.name), *cells)
    return table


def _sizes(report: ProbeReport) -> Table:
    """Return the variance of a batch's gradient for other group sizes."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"equal samples, 1: N={report.group_size}", no_wrap=True)
    sizes = sorted({size for costs in report.sizes.values() for size in costs})
    for size in sizes:
        table.add_column(f"N={size}", justify="right", no_wrap=True)
    for name, costs in report.sizes.items():
        table.add_row(name, *(f"{costs[size]:.2f}" if size in costs else "" for size in sizes))
    return table


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"

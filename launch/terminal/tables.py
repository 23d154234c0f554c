"""Evaluations and comparisons as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from maxpo.evaluation.comparison import Compared, Comparison
from maxpo.evaluation.figures import Estimate, EvalReport, Figures

ALL = "all prompts"


def is_share(name: str, names: Sequence[str]) -> bool:
    """Return True if a figure is a share of 1: pass@k and maj@n always, others if no reward is graded."""
    return name.startswith(("pass@", "maj@")) or not any(other.startswith("max@") for other in names)


def number(value: float, share: bool, *, sign: bool = False) -> str:
    """Return the value of a figure without its unit."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}" if share else f"{value:{plus}.3f}"


def with_interval(estimate: Estimate | None, share: bool, *, sign: bool = False) -> str:
    """Return an estimate as `12.3 % [10.1, 14.6]`, or a dash without one."""
    if estimate is None:
        return "-"
    value, low, high = (number(v, share, sign=sign) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value}{' %' * share} [{low}, {high}]"


def one_line(report: EvalReport) -> str:
    """Return the figures of all prompts on one line, without avg@n, which is nearly pass@1 or max@1."""
    figures = report.overall.estimates
    return "  ".join(
        f"{name} {with_interval(e, is_share(name, list(figures)))}"
        for name, e in figures.items()
        if not name.startswith("avg@")
    )


def report_table(reports: Sequence[EvalReport], titles: Sequence[str]) -> Table:
    """Return a table with a column for each report: all prompts first, then each source if there are several."""
    table = Table()
    table.add_column("held-out")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    _add_figures(table, ALL, [report.overall for report in reports])
    for source in dict.fromkeys(source for report in reports for source in report.sources):
        _add_figures(table, source, [report.sources.get(source) for report in reports])
    return table


def _add_figures(table: Table, what: str, figures: Sequence[Figures | None]) -> None:
    known = [own for own in figures if own is not None]
    names = list(dict.fromkeys(name for own in known for name in own.estimates))
    table.add_section()
    table.add_row(Text(f"{what} ({known[0].prompts})"), *[""] * len(figures), style="bold")
    for name in names:
        share = is_share(name, names)
        table.add_row(name, *[with_interval(own.estimates.get(name) if own else None, share) for own in figures])
    rows = {
        "solved at all": [f"{100 * own.solved:.1f} %" if own and own.prompts else "-" for own in figures],
        "unique completions": [f"{own.unique:.2f}" if own and own.prompts else "-" for own in figures],
        "without an answer": [
            "-" if own is None or own.no_answer is None else f"{100 * own.no_answer:.1f} %" for own in figures
        ],
        "dropped prompts": [str(own.dropped_prompts) if own else "-" for own in figures],
    }
    if not any(own.no_answer is not None for own in known):
        del rows["without an answer"]
    if not any(own.dropped_prompts for own in known):
        del rows["dropped prompts"]
    for name, cells in rows.items():
        table.add_row(name, *cells)


def difference_table(comparison: Comparison) -> Table:
    """Return a table of both models and their difference. A star marks intervals of the difference that exclude 0."""
    table = Table()
    for title in ("held-out", "A", "B", "B - A, paired", ""):
        table.add_column(title, justify="left" if title in ("held-out", "") else "right", no_wrap=title != "held-out")
    _add_differences(table, ALL, comparison.overall)
    for source, compared in comparison.sources.items():
        _add_differences(table, source, compared)
    return table


def _add_differences(table: Table, what: str, compared: Compared) -> None:
    table.add_section()
    table.add_row(Text(f"{what} ({compared.prompts})"), "", "", "", "", style="bold")
    names = list(compared.figures)
    for name, d in compared.figures.items():
        share = is_share(name, names)
        values = (number(e.value, share) + " %" * share for e in (d.a, d.b))
        table.add_row(name, *values, with_interval(d.difference, share, sign=True), "*" if d.excludes_zero else "")
    if compared.dropped_prompts:
        table.add_row("dropped prompts", "", "", str(compared.dropped_prompts), "")

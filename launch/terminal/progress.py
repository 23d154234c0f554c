"""Progress of a run in the terminal, and the tables at its end."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from launch.terminal.tables import one_line, report_table
from maxpo.evaluation.figures import EvalReport
from maxpo.loop.observer import Observer
from maxpo.loop.state import RunResult

STAGE_TIMES = ("generate", "score", "update", "sync", "confirm")


class Terminal(Observer):
    """Observer that shows bars and a status line in a terminal, and one plain line per step elsewhere."""

    def __init__(self, console: Console, steps: int, k: int) -> None:
        """Prepare the bars.

        Args:
            console: the console to print to.
            steps: number of steps of the run.
            k: K of the reward estimate max@K to show.
        """
        self._console, self._k = console, k
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._run = self._bars.add_task("training", total=steps, status="")
        self._stage = self._bars.add_task("starting", total=None, status="")
        self._live = Live(self._bars, console=console, refresh_per_second=8) if console.is_terminal else None
        self._started = time.monotonic()

    def __enter__(self) -> Terminal:
        """Show the bars."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the bars."""
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print the text."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def stage(self, name: str, total: int = 0) -> None:
        """Show the stage, with a bar if its number of groups is known."""
        self._bars.reset(self._stage, description=f"  {name}", total=total or None, completed=0)

    def advance(self) -> None:
        """Count one more group."""
        self._bars.advance(self._stage)

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        """Update the status line, or print a line for the step if there is no terminal."""
        shown = {"reward": "reward/mean", f"max@{self._k}": f"reward/max@{self._k}"}
        rewards = [f"{label} {metrics[name]:.3f}" for label, name in shown.items() if name in metrics]
        kept = f"kept {metrics['groups/kept']:.0f}/{metrics['groups/sampled']:.0f}"
        entropy = [f"entropy {metrics['policy/entropy']:.2f}"] if "policy/entropy" in metrics else []
        overflowed = metrics.get("train/overflow_steps")
        overflow = [f"overflow: loss scale {metrics['train/loss_scale']:.0f}"] if overflowed else []
        status = "  ".join([*rewards, kept, *entropy, *overflow])
        self._bars.update(self._run, completed=step, status=status)
        if not self._live:
            stages = " ".join(f"{s} {metrics[f'time/{s}_s']:.2f}" for s in STAGE_TIMES if f"time/{s}_s" in metrics)
            self._console.print(
                f"step {step}  {status}  {metrics['time/step_s']:.2f} s ({stages})", highlight=False, soft_wrap=True
            )

    def evaluated(self, step: int, result: EvalReport) -> None:
        """Print the estimates."""
        self._console.print(
            f"evaluation at step {step}  {one_line(result)}  "
            f"({time.monotonic() - self._started:.0f} s since the start)",
            highlight=False,
            soft_wrap=True,
        )


def comparison(result: RunResult) -> Table:
    """Return a table of the first and the last evaluation: unbiased estimates, with 95 % intervals over prompts."""
    steps = sorted(result.evaluations)
    shown = list(dict.fromkeys((steps[0], steps[-1])))
    return report_table([result.evaluations[step] for step in shown], [f"step {step}" for step in shown])


def timing(result: RunResult) -> Table:
    """Return a table of the median seconds of each stage of a step, and of tokens per second."""
    table = Table()
    table.add_column("stage")
    table.add_column(f"seconds, median of {len(result.history)} steps", justify="right")
    table.add_column("tokens/s", justify="right")
    rates = {"generate": "throughput/generate_tokens_per_s", "update": "throughput/train_tokens_per_s"}
    for stage in (*STAGE_TIMES, "step"):
        seconds = _median([m[f"time/{stage}_s"] for m in result.history if f"time/{stage}_s" in m])
        rate = _median([m[rates[stage]] for m in result.history if rates[stage] in m]) if stage in rates else None
        table.add_row(stage, "-" if seconds is None else f"{seconds:.2f}", f"{rate:,.0f}" if rate else "")
    return table


def counts(result: RunResult) -> str:
    """Return a sentence on the groups of the run: sampled, without signal, with too few valid samples."""
    n = result.totals
    refused = f"; {n['train/refused_steps']} optimizer steps refused" if n["train/refused_steps"] else ""
    refused += f"; {n['train/overflow_steps']} skipped by the loss scale" if n["train/overflow_steps"] else ""
    return (
        f"{n['groups/sampled']} groups sampled, {n['groups/zero_signal']} without signal, "
        f"{n['groups/too_few_valid']} with too few valid samples{refused}"
    )


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None

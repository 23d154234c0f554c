"""The command `maxpo check-advantage`: what each estimator is worth for the user's own N, K and rewards."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.terminal.printing import say
from maxpo.errors import InputError
from maxpo.estimators.advantages import ADVANTAGES
from maxpo.estimators.bandit import Bandit, Comparison, Measured, bernoulli, compare, empirical
from maxpo.estimators.objectives import rank_coefficients


def check_advantage(args: argparse.Namespace, console: Console) -> int:
    """Print the comparison that the command line asks for; returns the exit code.

    Raises:
        InputError: an argument or a line of the file cannot be used.
    """
    name, n, k, objective = args.estimator, args.n, args.k, args.objective
    if name not in ADVANTAGES:
        raise InputError(f"--estimator {name}: there is none of this name; there are {', '.join(ADVANTAGES)}")
    if n < 2 or not 1 <= k <= n:
        raise InputError(f"--n {n} --k {k}: allowed is N >= 2 and 1 <= K <= N")
    if args.draws < 2 or not 0 <= args.seed < 2**63:
        raise InputError(f"--draws {args.draws} --seed {args.seed}: allowed is at least 2, and 0 <= seed < 2**63")
    if objective != "max" and name != "maxpo":
        raise InputError(f"--objective {objective}: only maxpo knows objectives other than max, not {name}")
    try:
        rank_coefficients(objective, k)
    except ValueError as error:
        raise InputError(f"--objective: {error}") from error
    bandit, source = _rewards(args)
    names = [name, *(other for other in ADVANTAGES if other != name)]
    try:
        result = compare(bandit, n, k, objective=objective, names=names, draws=args.draws, seed=args.seed)
    except ValueError as error:
        raise InputError(str(error)) from error
    chosen = result.measured[0]
    if chosen.refused:
        raise InputError(f"--estimator {chosen.refused}")
    if args.json:
        print(json.dumps(_as_json(result, n=n, k=k, objective=objective, rewards=source), indent=1))
        return 0
    how = f"all {result.groups} possible groups" if result.exact else f"{result.groups} groups drawn"
    goal = f"max@{k}" if objective == "max" else f"{objective} of {k} samples"
    title = f"{goal} with groups of N = {n}, rewards: {source}; {how}"
    say(console, title)
    console.print(_table(result))
    for row in result.measured:
        if row.refused:
            say(console, f"left out   {row.refused}")
    console.print(
        f"bias      |mean gradient - gradient of {goal}| / |gradient|; 0 is unbiased\n"
        "scale     length of the mean gradient along the right one; angle: degrees between them\n"
        "          (softmax over the different rewards: with two there is only one direction)\n"
        "centred   every group's advantages add up to 0\n"
        f"variance  of one group's gradient, total; ratio: to {name}'s, where both are unbiased\n"
        "snr       |mean gradient|^2 / variance; non-0: samples whose advantage is not 0\n"
        "us        time for one group, in a batch of 256 on this machine",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _rewards(args: argparse.Namespace) -> tuple[Bandit, str]:
    """The distribution of rewards, and how to call it."""
    if args.rewards is not None:
        values = read_rewards(args.rewards)
        return empirical(values), f"{args.rewards} ({len(values)} rewards, {len(set(values))} different)"
    p = 0.2 if args.bernoulli is None else args.bernoulli
    if not 0 < p < 1:
        raise InputError(f"--bernoulli {p:g}: allowed is 0 < P < 1")
    return bernoulli(p), f"1 with probability {p:g}, else 0"


def read_rewards(path: Path) -> list[float]:
    """The rewards in a file, of all its prompts together; rows of a run's rollouts without a verdict are left out.

    Raises:
        InputError: naming file, line and what is wrong there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--rewards {path}: {error}") from error
    found: list[float] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            if row.get("outcome", "ok") not in ("ok", "too_long"):
                continue
            row = row.get("reward")
        if isinstance(row, bool) or not isinstance(row, int | float) or not -1e300 < row < 1e300:
            raise InputError(f"{path}:{number}: {line[:60]!r} is no finite number and no object with `reward`")
        found.append(float(row))
    if len(set(found)) < 2:
        raise InputError(f"--rewards {path}: {len(found)} rewards, {len(set(found))} different; at least 2 are needed")
    return found


def _table(result: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("estimator", no_wrap=True)
    for column in ("bias", "scale", "angle", "centred", "variance", "ratio", "snr", "non-0", "us"):
        table.add_column(column, justify="right", no_wrap=True)
    chosen = result.measured[0]
    for row in result.measured:
        if not row.refused:
            table.add_row(*_cells(row, chosen, exact=result.exact), style="bold" if row is chosen else "")
    return table


def _cells(row: Measured, chosen: Measured, *, exact: bool) -> list[str]:
    comparable = row.unbiased and chosen.unbiased
    return [
        row.estimator,
        ("0" if exact else f"0±{row.bias_error:.1g}") if row.unbiased else f"{row.bias:.3g}",
        f"{row.scale:.3g}",
        f"{row.angle:.1f}",
        "yes" if row.centred else "no",
        f"{row.variance:.3g}",
        f"{row.variance / chosen.variance:.2f}" if comparable else "",
        f"{row.signal_to_noise:.3g}",
        f"{100 * row.nonzero:.0f}%",
        f"{row.microseconds:.2f}",
    ]


def _as_json(result: Comparison, **asked: object) -> dict[str, object]:
    rows = [
        {"estimator": row.estimator, "refused": row.refused}
        if row.refused
        else {name: value if value == value else None for name, value in asdict(row).items() if name != "refused"}
        | {"centred": row.centred}
        for row in result.measured
    ]
    return asked | {"exact": result.exact, "groups": result.groups, "estimators": rows}

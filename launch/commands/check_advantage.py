"""`maxpo check-advantage`: bias, variance and cost of each estimator for the user's own N, K and rewards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from launch.commands.settings import Subparsers
from launch.terminal.printing import say
from maxpo.configure.rules.algorithm import is_lam
from maxpo.errors import InputError
from maxpo.estimators.names import WITH_OBJECTIVE, fixed_lam
from maxpo.plugins import FUNCTION, is_address

if TYPE_CHECKING:
    from maxpo.estimators.bandit import Bandit, Comparison


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "check-advantage",
        help="bias, centring, variance and cost of every estimator for given N, K and rewards",
        description="Measure every advantage estimator, side by side, for groups of N rewards from the distribution "
        "given. Small cases are counted out exactly, larger ones are drawn.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--estimator", default="maxpo", help="the one that others are compared with (default: maxpo)")
    parser.add_argument("--n", type=int, default=16, help="samples of a group, N (default: 16)")
    parser.add_argument("--k", type=int, default=4, help="K of max@K (default: 4)")
    parser.add_argument("--objective", default="max", help="statistic of K samples, as algorithm.objective")
    rewards = parser.add_mutually_exclusive_group()
    rewards.add_argument("--bernoulli", type=float, metavar="P", help="rewards 1 with probability P, else 0 (0.2)")
    rewards.add_argument(
        "--rewards",
        type=Path,
        metavar="FILE",
        help="a number on each line, or JSON lines with `reward` (rollouts/*.jsonl); taken as one distribution",
    )
    parser.add_argument(
        "--kappa",
        type=float,
        help="squared score of the lowest reward divided by that of the highest, as `maxpo probe` measures it: the "
        "variance is that of a large model with such scores, and the estimator kappa uses it",
    )
    parser.add_argument("--lam", default="v", help="weight of maxpo in the estimator interpolated (default: v)")
    parser.add_argument("--draws", type=int, default=20000, help="groups to draw in larger cases (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure the estimators and print the comparison. Return the exit code.

    Raises:
        InputError: an argument or a line of the file cannot be used.
    """
    from launch.terminal.estimators import estimator_table, estimators_as_json, legend

    _check(args)
    n, k, objective = args.n, args.k, args.objective
    bandit, source = _rewards(args)
    result = _measure(args, bandit)
    if args.json:
        print(
            json.dumps(
                estimators_as_json(result, n=n, k=k, objective=objective, kappa=args.kappa, rewards=source), indent=1
            )
        )
        return 0
    how = f"all {result.groups} possible groups" if result.exact else f"{result.groups} groups drawn"
    goal = f"max@{k}" if objective == "max" else f"{objective} of {k} samples"
    say(console, f"{goal} with groups of N = {n}, rewards: {source}; {how}")
    console.print(estimator_table(result))
    for row in result.measured:
        if row.refused:
            say(console, f"left out   {row.refused}")
    say(console, legend(goal, args.estimator, args.kappa))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that are out of range or contradict each other."""
    from maxpo.estimators.advantages import ADVANTAGES
    from maxpo.estimators.objectives import rank_coefficients
    from maxpo.estimators.own import own_problems

    name, n, k, objective = args.estimator, args.n, args.k, args.objective
    if name not in ADVANTAGES and not is_address(name):
        raise InputError(
            f"--estimator {name}: no estimator has this name; known are {', '.join(ADVANTAGES)}, or {FUNCTION}"
        )
    if name not in ADVANTAGES and (wrong := list(own_problems(name, n, min(k, n)))):
        raise InputError(f"--estimator: {wrong[0]}")
    if n < 2 or not 1 <= k <= n:
        raise InputError(f"--n {n} --k {k}: allowed is N >= 2 and 1 <= K <= N")
    if args.draws < 2 or not 0 <= args.seed < 2**63:
        raise InputError(f"--draws {args.draws} --seed {args.seed}: allowed is at least 2, and 0 <= seed < 2**63")
    if objective != "max" and name not in WITH_OBJECTIVE:
        raise InputError(f"--objective {objective}: known to {', '.join(WITH_OBJECTIVE)}, not to {name}")
    if args.kappa is not None and not 0 < args.kappa < 1e6:
        raise InputError(f"--kappa {args.kappa:g}: allowed is more than 0 and less than 1e6")
    if args.lam == "adaptive" or not is_lam(args.lam):
        raise InputError(f"--lam {args.lam}: must be v or a number")
    try:
        rank_coefficients(objective, k)
    except ValueError as error:
        raise InputError(f"--objective: {error}") from error


def _measure(args: argparse.Namespace, bandit: Bandit) -> Comparison:
    """Measure all estimators, the one of the command line first."""
    from maxpo.estimators.advantages import ADVANTAGES
    from maxpo.estimators.bandit import compare
    from maxpo.estimators.mixing import Parameters

    names = [args.estimator, *(other for other in ADVANTAGES if other != args.estimator)]
    given = {} if args.kappa is None else {"kappa": args.kappa}
    parameters = Parameters(objective=args.objective, lam=fixed_lam(args.lam), **given)
    try:
        result = compare(
            bandit,
            args.n,
            args.k,
            parameters=parameters,
            kappa=args.kappa,
            names=names,
            draws=args.draws,
            seed=args.seed,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if refused := result.measured[0].refused:
        raise InputError(f"--estimator {refused}")
    return result


def _rewards(args: argparse.Namespace) -> tuple[Bandit, str]:
    """Return the distribution of rewards, and its description."""
    from maxpo.estimators.bandit import bernoulli, empirical

    if args.rewards is not None:
        values = read_rewards(args.rewards)
        return empirical(values), f"{args.rewards} ({len(values)} rewards, {len(set(values))} different)"
    p = 0.2 if args.bernoulli is None else args.bernoulli
    if not 0 < p < 1:
        raise InputError(f"--bernoulli {p:g}: allowed is 0 < P < 1")
    return bernoulli(p), f"1 with probability {p:g}, else 0"


def read_rewards(path: Path) -> list[float]:
    """Return the rewards in a file, of all its prompts together, without those of samples that have no verdict.

    Raises:
        InputError: the file cannot be used; the message names the file, the line and the fault.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--rewards {path}: {error}") from error
    rewards: list[float] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            if row.get("outcome", "ok") != "ok" and row.get("reward") is None:
                continue
            row = row.get("reward")
        if isinstance(row, bool) or not isinstance(row, int | float) or not -1e300 < row < 1e300:
            raise InputError(f"{path}:{number}: {line[:60]!r} is neither a finite number nor an object with `reward`")
        rewards.append(float(row))
    if (different := len(set(rewards))) < 2:
        raise InputError(f"--rewards {path}: {len(rewards)} rewards, {different} different; at least 2 are needed")
    return rewards

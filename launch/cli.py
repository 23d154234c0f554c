"""The command `maxpo`. Heavy libraries are imported only after the configuration was checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from launch.commands import (
    check_advantage,
    compare,
    config,
    doctor,
    evaluate,
    export,
    fetch_model,
    plan,
    probe,
    resume,
    submit,
    train,
)
from launch.terminal.printing import say
from maxpo import __version__
from maxpo.configure.problems import ConfigError
from maxpo.errors import InputError, RunError

COMMANDS = (train, submit, resume, export, fetch_model, plan, evaluate, compare, probe, check_advantage, doctor, config)
"""Modules of the subcommands, in the order of `maxpo --help`. Each adds its arguments and names its function `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return its exit code: 0 done, 1 failed, 2 wrong input, 75 preempted, 130 Ctrl-C."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True)
    try:
        return args.run(args, Console())
    except InputError as error:
        of_settings = isinstance(error, ConfigError) or isinstance(error.__cause__, ConfigError)
        hint = "\n\n`maxpo config explain KEY` says what a setting means." if of_settings else ""
        say(errors, f"{'' if isinstance(error, ConfigError) else 'maxpo: '}{error}{hint}")
        return 2
    except RunError as error:
        from launch.run.signals import PREEMPTED, PreemptedError

        say(errors, "\n".join([f"maxpo: {error}", *getattr(error, "__notes__", [])]))
        return PREEMPTED if isinstance(error, PreemptedError) else 1
    except KeyboardInterrupt:
        say(errors, "maxpo: stopped at once")
        return 130


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Overrides (key=value) may stand before and after options."""
    parser = argparse.ArgumentParser(
        prog="maxpo", description="Post-train a language model for pass@K and max@K with Leave-Two-Out advantages."
    )
    parser.add_argument("--version", action="version", version=f"maxpo {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_arguments(subparsers)
    args, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    args.words = list(words)
    return args


if __name__ == "__main__":
    sys.exit(main())

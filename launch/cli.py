"""The command `maxpo`. Imports nothing heavy before it knows that the configuration is right."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from launch.commands.arguments import arguments
from launch.commands.evaluate import evaluate_command
from launch.commands.plan import plan_command
from launch.commands.submit import submit_command
from launch.commands.train import config_of_run, dry_run, train_command
from launch.terminal.printing import say
from maxpo.configure.loading import load_config
from maxpo.configure.problems import ConfigError
from maxpo.configure.writing import explain
from maxpo.errors import InputError, RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 wrong input, 1 failed, 130 Ctrl-C, 75 preempted."""
    args = arguments(argv)
    console, errors = Console(), Console(stderr=True)
    try:
        if args.command == "config":
            say(console, explain(args.key))
            return 0
        if args.command == "check-advantage":
            from launch.commands.check_advantage import check_advantage

            return check_advantage(args, console)
        if args.command == "doctor":
            from launch.doctor.doctor import run_doctor

            return run_doctor(args.overrides, args.address, console)
        if args.command == "fetch-model":
            from launch.commands.fetch_model import fetch_model

            say(console, f"{args.to}: {fetch_model(args.name, args.to)}")
            return 0
        if args.command == "evaluate":
            return evaluate_command(args, console)
        if args.command == "compare":
            from launch.commands.compare import compare_evaluations

            return compare_evaluations(args.a, args.b, console, as_json=args.json)
        if args.command == "export":
            from launch.commands.export import export_checkpoint

            source = export_checkpoint(config_of_run(args.run, []).config, args.run, args.step, args.to)
            say(console, f"{args.to}: the policy of {source}")
            return 0
        if args.command == "resume":
            return train_command(config_of_run(args.run, args.overrides), console)
        if args.command == "submit":
            return submit_command(args, list(argv or sys.argv[1:]), console)
        loaded = load_config([args.file], args.overrides)
        if args.command == "plan":
            return plan_command(loaded, args, console)
        return dry_run(loaded, console) if args.dry_run else train_command(loaded, console)
    except ConfigError as error:
        say(errors, str(error))
        errors.print("\n`maxpo config explain KEY` says what a setting means.", highlight=False, markup=False)
        return 2
    except (InputError, FileExistsError) as error:
        say(errors, f"maxpo: {error}")
        return 2
    except RunError as error:
        from launch.run.signals import PREEMPTED, StopTooLateError

        text = "\n".join([f"maxpo: {error}", *getattr(error, "__notes__", [])])
        say(errors, text)
        return PREEMPTED if isinstance(error, StopTooLateError) else 1
    except KeyboardInterrupt:
        errors.print("maxpo: stopped at once", highlight=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())

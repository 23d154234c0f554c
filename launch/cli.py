"""The command `maxpo`. Imports nothing heavy before it knows that the configuration is right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.rayenv import prepare_ray
from launch.say import say
from maxpo import __version__
from maxpo.checkpoints.local import Checkpoints
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.problems import ConfigError
from maxpo.configure.writing import explain, to_yaml
from maxpo.errors import InputError, RunError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maxpo", description="Post-train a language model for pass@K and max@K with Leave-Two-Out advantages."
    )
    parser.add_argument("--version", action="version", version=f"maxpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a model", description="Train as FILE.yaml says.")
    _add_config(train)
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the configuration, start nothing"
    )

    submit = commands.add_parser("submit", help="train on a cluster").add_subparsers(dest="scheduler", required=True)
    job = submit.add_parser(
        "ray",
        help="as a job of a running Ray cluster",
        description="Train FILE.yaml as a job of a running Ray cluster; print what it prints, return its exit code.",
    )
    _add_config(job)
    job.add_argument("--address", metavar="URL", help="of the dashboard (default: RAY_API_SERVER_ADDRESS)")
    job.add_argument("--detach", action="store_true", help="return as soon as the job is accepted")
    job.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    for scheduler, what in (("slurm", "an sbatch script"), ("k8s", "a KubeRay RayJob")):
        job = submit.add_parser(scheduler, help=f"as {what}", description=f"Submit FILE.yaml as {what}.")
        _add_config(job)
        job.add_argument("--dry-run", action="store_true", help=f"print {what}, submit nothing")

    resume = commands.add_parser(
        "resume", help="go on with a run", description="Go on with the run in RUN_DIR from its newest checkpoint."
    )
    resume.add_argument("run", type=Path, metavar="RUN_DIR")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="change settings, for example run.steps=500")

    export = commands.add_parser(
        "export",
        help="write the policy of a checkpoint",
        description="Write the policy of a checkpoint of RUN_DIR as a Hugging Face folder.",
    )
    export.add_argument("run", type=Path, metavar="RUN_DIR")
    export.add_argument("--step", type=int, help="of the checkpoint (default: the newest good one)")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")

    fetch = commands.add_parser(
        "fetch-model",
        help="a small model to start from",
        description="Write a small model as a Hugging Face folder: smollm2-135m (SmolLM2-135M-Instruct, Apache-2.0).",
    )
    fetch.add_argument("name", help="smollm2-135m")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")

    plan = commands.add_parser(
        "plan",
        help="memory per GPU, before anything runs",
        description="What the run of FILE.yaml needs of each GPU, whether it fits, and which setting would make it "
        "fit. Arithmetic only; needs no GPU.",
    )
    _add_config(plan)
    plan.add_argument(
        "--gpus", type=int, help="GPUs in all (default: those of the cluster settings, or what is needed)"
    )
    plan.add_argument("--gpu-gib", type=float, default=80.0, help="memory of each, GiB (default: 80)")

    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a model",
        description="Unbiased pass@k, max@k, avg@n, maj@n of MODEL on the held-out prompts of FILE.yaml.",
    )
    evaluate.add_argument("model", type=Path, help="Hugging Face folder, or a run folder (its exported policy)")
    _add_config(evaluate)
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for eval.json and the completions (default: RUN_DIR-eval)"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    compare = commands.add_parser(
        "compare",
        help="compare two evaluations",
        description="Differences B - A of every figure, with paired intervals over prompts.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="folder that `maxpo evaluate --out` wrote, or its eval.json")
    compare.add_argument("b", type=Path, metavar="B", help="the same of the other model")
    compare.add_argument("--json", action="store_true", help="print JSON")

    check = commands.add_parser(
        "check-advantage",
        help="bias, centring, variance and cost of every estimator for given N, K and rewards",
        description="Measure every advantage estimator, side by side, for groups of N rewards from the distribution "
        "given. Small cases are counted out exactly, larger ones are drawn.",
    )
    check.add_argument("--estimator", default="maxpo", help="the one that others are compared with (default: maxpo)")
    check.add_argument("--n", type=int, default=16, help="samples of a group, N (default: 16)")
    check.add_argument("--k", type=int, default=4, help="K of max@K (default: 4)")
    check.add_argument("--objective", default="max", help="statistic of K samples, as algorithm.objective")
    rewards = check.add_mutually_exclusive_group()
    rewards.add_argument("--bernoulli", type=float, metavar="P", help="rewards 1 with probability P, else 0 (0.2)")
    rewards.add_argument(
        "--rewards",
        type=Path,
        metavar="FILE",
        help="a number on each line, or JSON lines with `reward` (rollouts/*.jsonl); taken as one distribution",
    )
    check.add_argument("--draws", type=int, default=20000, help="groups to draw in larger cases (default: 20000)")
    check.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    check.add_argument("--json", action="store_true", help="print JSON")

    doctor = commands.add_parser(
        "doctor",
        help="check this machine, and every node of a cluster",
        description="Check versions, GPUs, memory, disks and limits of this machine and, where a running cluster is "
        "named, of each of its nodes. Exit code 1 where something is an error.",
    )
    doctor.add_argument("overrides", nargs="*", metavar="FILE.yaml key=value", help="settings to check for, if any")
    doctor.add_argument("--address", metavar="HOST:PORT", help="of the cluster (default: ray.address, RAY_ADDRESS)")

    config = commands.add_parser("config", help="look up settings").add_subparsers(dest="action", required=True)
    explained = config.add_parser("explain", help="what a setting means")
    explained.add_argument("key", nargs="?", help="for example algorithm.k, or a section; without it: all")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override settings of the file")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; key=value may stand before and after options."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 wrong input, 1 failed, 130 Ctrl-C, 75 preempted."""
    args = _arguments(argv)
    console, errors = Console(), Console(stderr=True)
    try:
        if args.command == "config":
            say(console, explain(args.key))
            return 0
        if args.command == "check-advantage":
            from launch.checkadvantage import check_advantage

            return check_advantage(args, console)
        if args.command == "doctor":
            from launch.doctor import run_doctor

            return run_doctor(args.overrides, args.address, console)
        if args.command == "fetch-model":
            from launch.fetchmodel import fetch_model

            say(console, f"{args.to}: {fetch_model(args.name, args.to)}")
            return 0
        if args.command == "evaluate":
            return _evaluate(args, console)
        if args.command == "compare":
            from launch.compare import compare_evaluations

            return compare_evaluations(args.a, args.b, console, as_json=args.json)
        if args.command == "export":
            from launch.export import export_checkpoint

            source = export_checkpoint(_config_of_run(args.run, []).config, args.run, args.step, args.to)
            say(console, f"{args.to}: the policy of {source}")
            return 0
        if args.command == "resume":
            return _train(_config_of_run(args.run, args.overrides), console)
        if args.command == "submit":
            return _submit(args, list(argv or sys.argv[1:]), console)
        loaded = load_config([args.file], args.overrides)
        if args.command == "plan":
            return _plan(loaded, args, console)
        return _dry_run(loaded, console) if args.dry_run else _train(loaded, console)
    except ConfigError as error:
        say(errors, str(error))
        errors.print("\n`maxpo config explain KEY` says what a setting means.", highlight=False, markup=False)
        return 2
    except (InputError, FileExistsError) as error:
        say(errors, f"maxpo: {error}")
        return 2
    except RunError as error:
        from launch.signals import PREEMPTED, StopTooLateError

        text = "\n".join([f"maxpo: {error}", *getattr(error, "__notes__", [])])
        say(errors, text)
        return PREEMPTED if isinstance(error, StopTooLateError) else 1
    except KeyboardInterrupt:
        errors.print("maxpo: stopped at once", highlight=False)
        return 130


def _config_of_run(run: Path, overrides: Sequence[str]) -> LoadedConfig:
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(f"{run} is no run folder: it has no config.yaml")
    place = run.resolve()
    return load_config(
        [file], ["checkpoint.resume=must", *overrides, f"run.dir={place.parent}", f"run.name={place.name}"]
    )


def _submit(args: argparse.Namespace, words: list[str], console: Console) -> int:
    from launch import kuberay, slurm, submit_ray

    # What a cluster far away sees of the model and the data need not be on this machine.
    loaded = load_config([args.file], args.overrides, files_here=args.scheduler == "slurm")
    if args.scheduler == "ray":
        return submit_ray.submit(
            loaded, words[2:], console, address=args.address, detach=args.detach, dry_run=args.dry_run
        )
    submit = {"slurm": slurm.submit, "k8s": kuberay.submit}[args.scheduler]
    return submit(loaded, console, dry_run=args.dry_run)


def _train(loaded: LoadedConfig, console: Console) -> int:
    prepare_ray(loaded.config.ray)
    from launch.train import run_training

    return run_training(loaded, console)


def _dry_run(loaded: LoadedConfig, console: Console) -> int:
    import torch

    from launch.placement import gpus_described, place
    from launch.preflight import load_data
    from launch.resume import remote_store
    from launch.train import banner

    config = loaded.config
    sources: list[str] = []
    train_prompts, held_out = load_data(config, say=sources.append)
    described = gpus_described(config.cluster)
    place(config, gpus=torch.cuda.device_count() if described is None else described)
    remote_store(config)
    say(console, to_yaml(loaded))
    for line in (*sources, banner(config, train_prompts)):
        say(console, line)
    console.print(
        f"{len(held_out)} held-out prompts x {config.eval.samples} completions per evaluation", highlight=False
    )
    console.print("dry run: everything checked, nothing started", highlight=False)
    return 0


def _plan(loaded: LoadedConfig, args: argparse.Namespace, console: Console) -> int:
    from launch.placement import gpus_described
    from launch.plan import show_plan

    config = loaded.config
    asked = config.learner.ranks + config.rollout.workers * config.rollout.tensor_parallel_size
    gpus = gpus_described(config.cluster) or asked if args.gpus is None else args.gpus
    if gpus < 1 or args.gpu_gib <= 0:
        raise InputError(f"--gpus {gpus} --gpu-gib {args.gpu_gib:g}: allowed is at least 1, and more than 0")
    return show_plan(config, console, gpus=gpus, gpu_gib=args.gpu_gib)


def _policy_of(given: Path) -> Path:
    """The model that is meant: a Hugging Face folder itself, of a run folder its exported policy.

    Raises:
        InputError: a run folder without one; the message says which command writes it.
    """
    if (given / "policy" / "config.json").is_file():
        return given / "policy"
    if not (given / "config.yaml").is_file() or (given / "config.json").is_file():
        return given  # what is wrong with it, if anything, is said as of any model.path
    if not Checkpoints(given / "checkpoints").steps():
        raise InputError(f"{given} has neither an exported policy nor a checkpoint: nothing to evaluate yet")
    raise InputError(
        f"{given} has no exported policy, since the run has not ended, but it has checkpoints. Write the policy of the "
        f"newest with\n  maxpo export {given} --to DIR\nand evaluate DIR."
    )


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    model = _policy_of(args.model)
    loaded = load_config([args.file], [*args.overrides, f"model.path={model}"])
    prepare_ray(loaded.config.ray)
    from launch.evaluate import evaluate_model

    return evaluate_model(loaded, model, args.out, Console(stderr=True) if args.json else console, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())

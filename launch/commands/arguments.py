"""The arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maxpo import __version__


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


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; key=value may stand before and after options."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args

"""`maxpo submit`."""

from __future__ import annotations

import argparse

from rich.console import Console

from launch.commands.settings import Subparsers, add_settings
from maxpo.configure.loading import load_config


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand, with one subcommand of its own for each scheduler, to the command line."""
    parser = subparsers.add_parser("submit", help="train on a cluster")
    schedulers = parser.add_subparsers(dest="scheduler", required=True)
    job = schedulers.add_parser(
        "ray",
        help="as a job of a running Ray cluster",
        description="Train FILE.yaml as a job of a running Ray cluster; print what it prints, return its exit code.",
    )
    job.set_defaults(run=run_on_ray)
    add_settings(job)
    job.add_argument("--address", metavar="URL", help="of the dashboard (default: RAY_API_SERVER_ADDRESS)")
    job.add_argument("--detach", action="store_true", help="return as soon as the job is accepted")
    job.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    for scheduler, what, submit in (
        ("slurm", "an sbatch script", run_on_slurm),
        ("k8s", "a KubeRay RayJob", run_on_kubernetes),
    ):
        job = schedulers.add_parser(scheduler, help=f"as {what}", description=f"Submit FILE.yaml as {what}.")
        job.set_defaults(run=submit)
        add_settings(job)
        job.add_argument("--dry-run", action="store_true", help=f"print {what}, submit nothing")


# The model and the data of a remote cluster need not exist on this machine. SLURM submits from a node of the cluster.


def run_on_ray(args: argparse.Namespace, console: Console) -> int:
    """Submit a Ray job and follow it. Return the exit code."""
    from launch.submit.ray_job import submit

    loaded = load_config([args.file], args.overrides, files_here=False)
    words = args.words[2:]  # those after `submit ray`
    return submit(loaded, words, console, address=args.address, detach=args.detach, dry_run=args.dry_run)


def run_on_slurm(args: argparse.Namespace, console: Console) -> int:
    """Submit a SLURM job. Return the exit code."""
    from launch.submit.slurm import submit

    return submit(load_config([args.file], args.overrides), console, dry_run=args.dry_run)


def run_on_kubernetes(args: argparse.Namespace, console: Console) -> int:
    """Submit a KubeRay RayJob. Return the exit code."""
    from launch.submit.kubernetes import submit

    return submit(load_config([args.file], args.overrides, files_here=False), console, dry_run=args.dry_run)

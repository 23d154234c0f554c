"""`maxpo submit`."""

from __future__ import annotations

import argparse

from rich.console import Console

from maxpo.configure.loading import load_config


def submit_command(args: argparse.Namespace, words: list[str], console: Console) -> int:
    """Run `maxpo submit`; the exit code."""
    from launch.submit import kubernetes as kuberay
    from launch.submit import ray_job as submit_ray
    from launch.submit import slurm

    # What a cluster far away sees of the model and the data need not be on this machine.
    loaded = load_config([args.file], args.overrides, files_here=args.scheduler == "slurm")
    if args.scheduler == "ray":
        return submit_ray.submit(
            loaded, words[2:], console, address=args.address, detach=args.detach, dry_run=args.dry_run
        )
    submit = {"slurm": slurm.submit, "k8s": kuberay.submit}[args.scheduler]
    return submit(loaded, console, dry_run=args.dry_run)

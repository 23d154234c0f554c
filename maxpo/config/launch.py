"""Settings of the section `launch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class LaunchConfig:
    """What `maxpo submit` asks a scheduler for. No effect on the training itself."""

    time_limit_min: int = 1440
    """Wall-clock limit of one attempt, minutes."""
    stop_before_s: int = 600
    """Seconds before the limit at which the run is told to stop; more than `checkpoint.stop_within_s`."""
    max_attempts: int = 20
    """How often the job is started, the first time included; each further attempt resumes."""
    cpus_per_node: int = 8
    """CPUs of each node."""
    memory_gib: int | None = None
    """Memory of each node, GiB; null: the scheduler's default."""
    setup: list[str] = field(default_factory=list[str])
    """Lines of bash that every node runs first, such as `source /shared/maxpo/.venv/bin/activate`; with `submit ray`
    only the driver does, nodes stay as they were started. No effect on k8s: the image holds all that is needed."""
    env: dict[str, Any] = field(default_factory=dict[str, Any])
    """Environment variables of all processes. Secrets do not belong here: the job's script shows them."""
    log_dir: str = "jobs"
    """slurm: folder of the job's script and output, below it one for each run name. All nodes must see it at the same
    path. No effect otherwise."""
    slurm_options: list[str] = field(default_factory=list[str])
    """slurm: further options of sbatch, such as `--partition=gpu`. They come last and so overrule those that other
    settings stand for. No effect otherwise."""
    k8s_image: str | None = None
    """k8s: container image with maxpo and all that it needs; must be set there. No effect otherwise."""
    k8s_claim: str | None = None
    """k8s: PersistentVolumeClaim with the model, the data and the run folder; must be set there. With more than one
    node it needs the access mode ReadWriteMany. No effect otherwise."""
    k8s_mount: str = "/maxpo"
    """k8s: where all pods have the volume of `k8s_claim`; relative paths of the settings start there. No effect
    otherwise."""
    k8s_secret: str | None = None
    """k8s: Secret whose keys become environment variables of all pods, for settings such as ${oc.env:NAME}; null: none.
    No effect otherwise."""
    k8s_shm_gib: int = 16
    """k8s: shared memory (/dev/shm) of each pod, GiB, which counts as part of `memory_gib`. No effect otherwise."""
    k8s_user: int = 1000
    """k8s: number of the user and the group that all processes run as, not 0. No effect otherwise."""

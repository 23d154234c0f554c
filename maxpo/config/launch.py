"""Settings of the section `launch`."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from maxpo.config.ranges import PROCESSES, Arguments, Must, between, matches

DNS_NAME = r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""Pattern of the name of a Kubernetes object."""


def is_line(text: str) -> bool:
    """Return True if the text is one line. Control characters would end or hide the rest of a line in a script."""
    return bool(text.strip()) and text.isprintable()


def is_variable(name: object, value: object) -> bool:
    """Return True if the pair can be an environment variable of a job: a plain name, and a value on one line."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None
        and not name.startswith("RAY_AUTH_")
        and isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and str(value).isprintable()
    )


def is_mount(path: str) -> bool:
    """Return True if the path can be the folder of a pod's volume."""
    return re.fullmatch(r"(/[\w.+@=,-]+)+", path, re.ASCII) is not None and path not in ("/dev/shm", "/etc/maxpo")


@dataclass(kw_only=True)
class LaunchConfig:
    """Resources that `maxpo submit` requests from a scheduler. No effect on the training itself."""

    time_limit_min: Annotated[int, between(1, 10**6)] = 1440
    """Wall-clock limit of one attempt, minutes."""
    stop_before_s: Annotated[int, between(1, 10**7)] = 600
    """Seconds between the signal to stop and the wall-clock limit. Must be more than `checkpoint.stop_within_s`."""
    max_attempts: Annotated[int, between(1, 10**4)] = 20
    """Largest number of starts of the job, the first start included. Each further attempt resumes the run."""
    cpus_per_node: Annotated[int, PROCESSES] = 8
    """CPUs of each node."""
    memory_gib: Annotated[int | None, between(1, 10**6)] = None
    """Memory of each node, GiB. null: the scheduler's default."""
    setup: Annotated[list[str], Must(lambda v: all(map(is_line, v)), "Each must be one line of shell, not empty.")] = (
        field(default_factory=list[str])
    )
    """Lines of bash that every node runs first, such as `source /shared/maxpo/.venv/bin/activate`. With `submit ray`
    only the driver runs these lines; nodes stay as they were started. No effect on k8s: the image holds everything."""
    env: Annotated[
        Arguments,
        Must(
            lambda v: all(is_variable(name, value) for name, value in v.items()),
            "Names must be letters, digits and _, and not begin with RAY_AUTH_ (the job sets those itself); values "
            "text on one line, or numbers. Quote true and false.",
        ),
    ] = field(default_factory=Arguments)
    """Environment variables of all processes. Do not put secrets here: the job's script shows the values."""
    log_dir: Annotated[
        str,
        matches(
            r"[\w./+@=,][\w./+@=,-]*",
            "Must be a folder, written with letters, digits and ._/+@=,- only: sbatch gives other characters a "
            "meaning.",
        ),
    ] = "jobs"
    """slurm: folder of the job's script and output, with a folder for each run name. All nodes must see this folder at
    the same path. No effect otherwise."""
    slurm_options: Annotated[
        list[str],
        Must(
            lambda v: all(is_line(option) and re.match(r"-\w|--\w", option) is not None for option in v),
            "Each must be one option of sbatch on one line, such as --partition=gpu.",
        ),
    ] = field(default_factory=list[str])
    """slurm: further options of sbatch, such as `--partition=gpu`. These options come last and override the options
    that other settings make. No effect otherwise."""
    k8s_image: Annotated[
        str | None,
        matches(r"[\w./:@-]+", "Must be the name of a container image, such as registry.example.org/maxpo:1.0."),
    ] = None
    """k8s: container image with maxpo and all its dependencies. Required for k8s. No effect otherwise."""
    k8s_claim: Annotated[str | None, matches(DNS_NAME, "Must be the name of a PersistentVolumeClaim.")] = None
    """k8s: PersistentVolumeClaim with the model, the data and the run folder. Required for k8s. More than one node
    needs the access mode ReadWriteMany. No effect otherwise."""
    k8s_mount: Annotated[
        str,
        Must(
            is_mount,
            "Must be an absolute path, written with letters, digits and ._/+@=,- only, and not a folder that the pods "
            "need themselves (/dev/shm, /etc/maxpo).",
        ),
    ] = "/maxpo"
    """k8s: path of the volume of `k8s_claim` in all pods. Relative paths of the settings start there. No effect
    otherwise."""
    k8s_secret: Annotated[str | None, matches(DNS_NAME, "Must be the name of a Secret.")] = None
    """k8s: Secret whose keys become environment variables of all pods, for settings such as ${oc.env:NAME}. null: none.
    No effect otherwise."""
    k8s_shm_gib: Annotated[int, between(1, 10**6)] = 16
    """k8s: shared memory (/dev/shm) of each pod, GiB, part of `memory_gib`. No effect otherwise."""
    k8s_user: Annotated[int, between(1, 2**31 - 2)] = 1000
    """k8s: number of the user and of the group that all processes run as, not 0. No effect otherwise."""

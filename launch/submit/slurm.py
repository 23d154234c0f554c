"""`maxpo submit slurm`: one sbatch script that starts a Ray cluster, trains, and goes back to the queue."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from pathlib import Path

from rich.console import Console

from launch.cluster.ray_environment import EVERY_CLUSTER
from launch.submit.job import RESUME, check_job, need_program
from launch.terminal.printing import say
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError, RunError

FIRST_PORT, PORTS, BLOCKS = 10000, 500, 45
"""Each job has a block of ports, chosen by its number, below 32768, where the ports of outgoing connections begin."""
MOST_CPUS = 400
"""Largest number of CPUs of a node. Ray starts a worker for each CPU, and each worker needs a port of the block."""
JOB_SCRIPT, NODE_SCRIPT = (Path(__file__).with_name(name) for name in ("slurm_job.sh", "slurm_node.sh"))
"""The script of a job, with placeholders that are comments (`#@ name`), and what each of its nodes runs."""


def render(loaded: LoadedConfig) -> str:
    """Return the sbatch script of a run.

    Raises:
        InputError: a setting cannot be part of the script.
    """
    config = loaded.config
    check_job(loaded)
    if config.launch.cpus_per_node > MOST_CPUS:
        raise InputError(
            f"launch.cpus_per_node = {config.launch.cpus_per_node}: a job has ports for at most {MOST_CPUS} CPUs of a "
            "node"
        )
    files = {
        "config.yaml": to_yaml(loaded),
        "setup.sh": "".join(f"{line}\n" for line in config.launch.setup),
        "node.sh": NODE_SCRIPT.read_text(encoding="utf-8"),
    }
    blocks = {
        "options": _options(config),
        "variables": _variables(config),
        "files": [_file(name, text) for name, text in files.items()],
    }
    # One pass, so that a setting that looks like a placeholder stays as it is.
    template = JOB_SCRIPT.read_text(encoding="utf-8")
    return re.sub(r"^#@ (\w+)$", lambda match: "\n".join(blocks[match[1]]), template, flags=re.MULTILINE)


def _options(config: Config) -> list[str]:
    """Return the lines that sbatch reads, and a comment with the folder that they need."""
    launch, cluster, folder = config.launch, config.cluster, _folder(config)
    options = [
        f"--job-name={config.run.name}",
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={launch.cpus_per_node}",
        *([] if cluster.gpus_per_node is None else [f"--gpus-per-node={cluster.gpus_per_node}"]),
        *([] if launch.memory_gib is None else [f"--mem={launch.memory_gib}G"]),
        f"--time={launch.time_limit_min}",
        f"--signal=B:USR1@{launch.stop_before_s}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder}/slurm-%j.log",
        *launch.slurm_options,
    ]
    return [
        *(f"#SBATCH {option}" for option in options),
        f"# Made by `maxpo submit slurm`. The folder {folder} must exist when the job starts, or its output is lost.",
    ]


def _variables(config: Config) -> list[str]:
    """Return the lines that set the variables of the script, and those of its processes."""
    variables = {
        "max_attempts": config.launch.max_attempts,
        "node_timeout_s": math.ceil(config.cluster.node_timeout_s),
        "log_dir": _folder(config),
        "resume": RESUME,
    }
    exported = EVERY_CLUSTER | {
        "MAXPO_INTERFACE": config.cluster.interface or "",
        "MAXPO_OBJECT_STORE": config.ray.object_store_mib << 20,
        "MAXPO_PORTS": PORTS,
        **config.launch.env,
    }
    return [
        *(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *(f"export {name}={shlex.quote(str(value))}" for name, value in exported.items()),
        f"export MAXPO_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {BLOCKS} * {PORTS}))",
    ]


def _folder(config: Config) -> str:
    """Return the folder of the script and of the output of a run.

    Raises:
        InputError: the name of the run has a character with a meaning in options of sbatch.
    """
    if re.fullmatch(r"[\w.+@=,-]+", config.run.name, re.ASCII) is None:
        raise InputError(
            f"run.name = {config.run.name!r} cannot be the name of a SLURM job: use letters, digits and ._+@=,- only"
        )
    return f"{config.launch.log_dir.rstrip('/')}/{config.run.name}"


def _file(name: str, text: str) -> str:
    """Return the shell command that writes a file into the folder of the attempt, without expanding anything.

    Raises:
        InputError: the text contains the line that ends it.
    """
    end = f"MAXPO_END_OF_{re.sub('[^A-Z]', '_', name.upper())}"
    if end in text.splitlines():
        raise InputError(f"a setting has the line {end}, which the script of the job itself uses: change the setting")
    return f"cat >\"$logs/{name}\" <<'{end}'\n{text}{end}"


def submit(loaded: LoadedConfig, console: Console, *, dry_run: bool) -> int:
    """Submit the job to SLURM. Return the exit code.

    Args:
        loaded: a checked configuration.
        console: gets the number of the job and the commands to follow and stop it.
        dry_run: print the script, submit nothing.

    Raises:
        InputError: sbatch is not installed, or a setting cannot be part of a script.
        RunError: SLURM refuses the job.
    """
    script = render(loaded)
    if dry_run:
        console.out(script, highlight=False, end="")
        return 0
    sbatch = need_program("sbatch")
    folder = Path(_folder(loaded.config))
    file = folder / "job.sbatch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(script, encoding="utf-8")
    except OSError as error:
        raise InputError(f"launch.log_dir = {loaded.config.launch.log_dir} cannot be written: {error}") from error
    done = subprocess.run([sbatch, "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"sbatch {file} failed with exit code {done.returncode}: {done.stderr.strip()}")
    job = done.stdout.strip().partition(";")[0]  # a cluster's name may follow
    run = Path(loaded.config.run.dir) / loaded.config.run.name
    text = f"""job             {job}
script          {file}
output          {folder}/slurm-{job}.log
run folder      {run}
watch           squeue -j {job}; tail -F {folder}/slurm-{job}.log
save and stop   scancel --signal=TERM --batch {job}
stop at once    scancel {job}"""
    say(console, text)
    return 0

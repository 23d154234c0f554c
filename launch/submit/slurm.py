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
"""Each job has a block of ports of its own by its number, below 32768: from there on Linux gives ports to anybody."""
MOST_CPUS = 400
"""Ray starts a worker for each CPU, and each needs a port of the block."""

NODE = r"""# What one node does. head: starts the cluster; worker HOST:PORT: joins it; sweep: removes what Ray has left.
set -euo pipefail
logs=${0%/*}
if [ "$1" = sweep ]; then
  mkdir -p "$logs/ray-$(hostname)"
  for file in "$MAXPO_TMP"/ray/session_latest/logs/worker-*; do
    if [ -s "$file" ]; then cp "$file" "$logs/ray-$(hostname)"; fi
  done
  rm -rf "$MAXPO_TMP"
  exit
fi
set +u # environments are seldom written for it
# shellcheck source=/dev/null
source "$logs/setup.sh"
set -u
if [ -n "$MAXPO_INTERFACE" ]; then
  ip=$(ip -o -4 addr show dev "$MAXPO_INTERFACE" | awk '{ sub("/.*", "", $4); print $4; exit }')
else
  ip=$(hostname -I | awk '{ print $1 }')
fi
if [ -z "$ip" ]; then
  echo "maxpo: $(hostname) has no address${MAXPO_INTERFACE:+ on $MAXPO_INTERFACE}: set cluster.interface" >&2
  exit 1
fi
port=$MAXPO_PORT
if [ "$1" = head ]; then
  role=(--head "--port=$port" --include-dashboard=false "--ray-client-server-port=$((port + 7))")
  export DASHBOARD_METRIC_PORT=$((port + 8)) AUTOSCALER_METRIC_PORT=$((port + 9)) # there is no option for them
  echo "$ip:$port" >"$logs/address.new"
  mv "$logs/address.new" "$logs/address"
else
  role=("--address=$2")
fi
# Short, because paths of Unix sockets are limited to 107 bytes. Ray makes its own folder open to all, hence one around.
mkdir -m 700 "$MAXPO_TMP"
exec ray start "${role[@]}" --block "--node-ip-address=$ip" "--temp-dir=$MAXPO_TMP/ray" \
  "--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}" \
  "--object-store-memory=$MAXPO_OBJECT_STORE" \
  "--node-manager-port=$((port + 1))" "--object-manager-port=$((port + 2))" \
  "--runtime-env-agent-port=$((port + 3))" "--metrics-export-port=$((port + 4))" \
  "--dashboard-agent-listen-port=$((port + 5))" "--dashboard-agent-grpc-port=$((port + 6))" \
  "--min-worker-port=$((port + 10))" "--max-worker-port=$((port + MAXPO_PORTS - 1))"
"""

START = r"""attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
if [ "$attempt" -gt "$max_attempts" ]; then
  echo "maxpo: attempt $attempt is more than launch.max_attempts = $max_attempts" >&2
  exit 75
fi
logs=$log_dir/job-$SLURM_JOB_ID/attempt-$attempt
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
echo "maxpo: attempt $attempt of $max_attempts on $SLURM_JOB_NUM_NODES node(s), logs in $logs"
"""

RUN = r"""
export MAXPO_TMP=/tmp/maxpo-$SLURM_JOB_ID-$attempt
steps=() driver='' asked='' interrupted=''

# What runs node.sh once on each of some nodes; srun itself and no function, so that signals reach it.
on_nodes=(srun --overlap --export=ALL --ntasks-per-node=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0
  "--output=$logs/node-%N.log" --open-mode=append)

end() { # ends the cluster and removes the token; also where a command above has failed
  trap '' USR1 TERM
  trap - EXIT
  if [ -n "$driver" ]; then kill "$driver" 2>/dev/null || true; fi
  if [ "${#steps[@]}" -gt 0 ]; then
    kill "${steps[@]}" 2>/dev/null || true
    for _ in {1..300}; do # Ray drains a node for up to 30 s
      kill -0 "${steps[@]}" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL "${steps[@]}" 2>/dev/null || true
    timeout --signal=KILL 60 "${on_nodes[@]}" "--nodes=$SLURM_JOB_NUM_NODES" "--ntasks=$SLURM_JOB_NUM_NODES" \
      bash "$logs/node.sh" sweep || true
  fi
  rm -f "$logs/token"
}

fail() {
  echo "maxpo: $1" >&2
  exit 1
}

# shellcheck disable=SC2329 # the traps call it
forward() { # SIGNAL: the driver saves and exits with 75
  if [ "$asked" != TERM ]; then asked=$1; fi
  interrupted=1
  if [ -n "$driver" ]; then kill -s "$1" "$driver" 2>/dev/null || true; fi
}
trap end EXIT
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# The token is in a file that only this user can read, never in a command line or a log.
export RAY_AUTH_TOKEN_PATH=$logs/token
unset RAY_AUTH_TOKEN
rm -f "$RAY_AUTH_TOKEN_PATH" "$logs/address"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

"${on_nodes[@]}" --nodes=1 --ntasks=1 "--nodelist=$SLURMD_NODENAME" bash "$logs/node.sh" head &
steps+=($!)
limit=$((SECONDS + node_timeout_s))
reached() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }
until [ -n "$asked" ] || { [ -s "$logs/address" ] && reached "$(cat "$logs/address")"; }; do
  kill -0 "${steps[0]}" 2>/dev/null || fail "Ray's head ended at once, see $logs/node-$SLURMD_NODENAME.log"
  [ "$SECONDS" -lt "$limit" ] || fail "Ray's head did not answer within cluster.node_timeout_s = $node_timeout_s s"
  sleep 0.5
done

code=75
if [ -z "$asked" ]; then
  address=$(cat "$logs/address")
  if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    "${on_nodes[@]}" "--nodes=$others" "--ntasks=$others" "--exclude=$SLURMD_NODENAME" \
      bash "$logs/node.sh" worker "$address" &
    steps+=($!)
  fi
  maxpo train "$logs/config.yaml" "ray.address=$address" "$resume" &
  driver=$!
  # A signal that is caught ends `wait` early, without the driver's exit code.
  while true; do
    interrupted='' code=0
    wait "$driver" || code=$?
    [ -n "$interrupted" ] || break
  done
  driver=''
fi
# 128 + USR1 or TERM: the signal came before the driver could take it.
if [ -n "$asked" ] && { [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; }; then code=75; fi
end

if [ "$code" -eq 75 ] && [ "$asked" != TERM ]; then
  if [ "$attempt" -lt "$max_attempts" ]; then
    echo "maxpo: attempt $attempt of $max_attempts has ended, back to the queue"
    scontrol requeue "$SLURM_JOB_ID" || echo "maxpo: the job could not go back to the queue" >&2
  else
    echo "maxpo: attempt $attempt was the last one, launch.max_attempts = $max_attempts" >&2
  fi
fi
exit "$code"
"""


def render(loaded: LoadedConfig) -> str:
    """The sbatch script of a run.

    Raises:
        InputError: a setting cannot be part of it.
    """
    config = loaded.config
    check_job(loaded)
    launch, cluster = config.launch, config.cluster
    if launch.cpus_per_node > MOST_CPUS:
        raise InputError(
            f"launch.cpus_per_node = {launch.cpus_per_node}: a job has ports for at most {MOST_CPUS} CPUs of a node"
        )
    folder = _folder(config)
    output = f"{folder}/slurm-%j.log"
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
        f"--output={output}",
        *launch.slurm_options,
    ]
    variables = {
        "max_attempts": launch.max_attempts,
        "node_timeout_s": math.ceil(cluster.node_timeout_s),
        "log_dir": folder,
        "resume": RESUME,
    }
    exported = EVERY_CLUSTER | {
        "MAXPO_INTERFACE": cluster.interface or "",
        "MAXPO_OBJECT_STORE": config.ray.object_store_mib << 20,
        "MAXPO_PORTS": PORTS,
        **launch.env,
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        f"# Made by `maxpo submit slurm`. The folder {folder} must exist when the job starts, or its output is lost.",
        "# shellcheck disable=SC2016 # a $ in a setting is text",
        "set -euo pipefail",
        'cd "$SLURM_SUBMIT_DIR"',
        *(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *(f"export {name}={shlex.quote(str(value))}" for name, value in exported.items()),
        f"export MAXPO_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {BLOCKS} * {PORTS}))",
        "",
        START.rstrip(),
        _file("config.yaml", to_yaml(loaded)),
        _file("setup.sh", "".join(f"{line}\n" for line in launch.setup)),
        _file("node.sh", NODE),
        "set +u # environments are seldom written for it",
        "# shellcheck source=/dev/null",
        'source "$logs/setup.sh"',
        "set -u",
        RUN.strip(),
    ]
    return "\n".join(lines) + "\n"


def _folder(config: Config) -> str:
    """Where the script and the output of a run go: part of an option of sbatch, which gives some characters a meaning.

    Raises:
        InputError: the name of the run has such a character.
    """
    if re.fullmatch(r"[\w.+@=,-]+", config.run.name, re.ASCII) is None:
        raise InputError(
            f"run.name = {config.run.name!r} cannot be the name of a SLURM job: use letters, digits and ._+@=,- only"
        )
    return f"{config.launch.log_dir.rstrip('/')}/{config.run.name}"


def _file(name: str, text: str) -> str:
    """The shell command that writes a file into the folder of the attempt, nothing in it expanded.

    Raises:
        InputError: the text has the line that ends it.
    """
    end = f"MAXPO_END_OF_{re.sub('[^A-Z]', '_', name.upper())}"
    if end in text.splitlines():
        raise InputError(f"a setting has the line {end}, which the job's script uses itself: change it")
    return f"cat >\"$logs/{name}\" <<'{end}'\n{text}{end}"


def submit(loaded: LoadedConfig, console: Console, *, dry_run: bool) -> int:
    """Hand the job over to SLURM; returns the exit code.

    Args:
        loaded: a checked configuration.
        console: where it is said what was submitted.
        dry_run: print the script and start nothing.

    Raises:
        InputError: there is no sbatch, or a setting cannot be part of a script.
        RunError: SLURM does not take the job.
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

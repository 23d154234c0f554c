#!/bin/bash
#SBATCH --job-name=first
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=30
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jobs/first/slurm-%j.log
# Made by `maxpo submit slurm`. The folder jobs/first must exist when the job starts, or its output is lost.
# shellcheck disable=SC2016 # a $ in a setting is text
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
max_attempts=2
node_timeout_s=300
log_dir=jobs/first
resume=checkpoint.resume=auto
export RAY_AUTH_MODE=token
export RAY_worker_niceness=0
export RAY_enable_worker_prestart=0
export RAY_prestart_worker_first_driver=0
export RAY_USAGE_STATS_ENABLED=0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
export MAXPO_INTERFACE=''
export MAXPO_OBJECT_STORE=536870912
export MAXPO_PORTS=500
export MAXPO_PORT=$((10000 + SLURM_JOB_ID % 45 * 500))

attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
if [ "$attempt" -gt "$max_attempts" ]; then
  echo "maxpo: attempt $attempt is more than launch.max_attempts = $max_attempts" >&2
  exit 75
fi
logs=$log_dir/job-$SLURM_JOB_ID/attempt-$attempt
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
echo "maxpo: attempt $attempt of $max_attempts on $SLURM_JOB_NUM_NODES node(s), logs in $logs"
cat >"$logs/config.yaml" <<'MAXPO_END_OF_CONFIG_YAML'
(all settings)
MAXPO_END_OF_CONFIG_YAML
cat >"$logs/setup.sh" <<'MAXPO_END_OF_SETUP_SH'
MAXPO_END_OF_SETUP_SH
cat >"$logs/node.sh" <<'MAXPO_END_OF_NODE_SH'
# What one node does. head: starts the cluster; worker HOST:PORT: joins it; sweep: removes what Ray has left.
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
MAXPO_END_OF_NODE_SH
set +u # environments are seldom written for it
# shellcheck source=/dev/null
source "$logs/setup.sh"
set -u
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

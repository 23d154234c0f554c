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

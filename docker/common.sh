# shellcheck shell=bash disable=SC2034
# Sourced by head.sh and worker.sh: the token, the addresses, the ports, and the environment of Ray's processes.

fail() {
    printf 'maxpo: %s\n' "$1" >&2
    exit 2
}

# Ray runs the code of whoever may talk to it: never without a token, and never with one that others can read.
require_token() {
    local path=${RAY_AUTH_TOKEN_PATH:-} token=${RAY_AUTH_TOKEN:-} mode
    if [[ -n $path ]]; then
        [[ -f $path && -r $path ]] || fail "RAY_AUTH_TOKEN_PATH: $path is not a file that user $(id -u) can read"
        mode=$(stat --dereference --format=%a -- "$path")
        if ((8#$mode & 8#077)); then
            fail "RAY_AUTH_TOKEN_PATH: $path can be read by others than its owner (mode $mode); chmod 400 it"
        fi
        grep -q '[^[:space:]]' -- "$path" || fail "RAY_AUTH_TOKEN_PATH: $path is empty"
    elif [[ -z ${token//[[:space:]]/} ]]; then
        fail "no token: set RAY_AUTH_TOKEN_PATH to a file with it (or RAY_AUTH_TOKEN), the same on every node"
    fi
}

# The address under which other nodes reach this one: MAXPO_NODE_IP, else the first of this host.
node_ip() {
    local ip=${MAXPO_NODE_IP:-}
    [[ -n $ip ]] || read -r ip _ < <(hostname -I) || true
    [[ -n $ip ]] || fail "this host has no address: set MAXPO_NODE_IP to the one that other nodes reach"
    printf '%s\n' "$ip"
}

export RAY_AUTH_MODE=token              # explicitly: Ray's own clients disagree about the default
export RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0            # Ray's default of 15 starves its workers beside any other busy process
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0  # as on a cluster that MaxPO starts itself
HEAD_PORT=6379
# Fixed, so that a firewall can be told, and below 32768, where outgoing connections take theirs at random.
NODE_PORTS=(
    --node-manager-port=6380
    --object-manager-port=6381
    --runtime-env-agent-port=6382
    --dashboard-agent-listen-port=6383
    --dashboard-agent-grpc-port=6384
    --metrics-export-port=6385
    --min-worker-port=10002
    --max-worker-port=19999
)

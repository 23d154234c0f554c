#!/usr/bin/env bash
# Starts the head of a Ray cluster and stays in the foreground; SIGTERM ends the node. Arguments go on to `ray start`.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_token
ip=$(node_ip)
# Two more servers of the head, of figures only; Ray has no options for their ports.
export AUTOSCALER_METRIC_PORT=6386 DASHBOARD_METRIC_PORT=6387
# exec: signals reach Ray itself. The dashboard takes jobs, so it is on loopback only.
exec ray start --head --block --node-ip-address="$ip" --port="$HEAD_PORT" \
    --dashboard-host=127.0.0.1 --dashboard-port=8265 --ray-client-server-port=10001 "${NODE_PORTS[@]}" "$@"

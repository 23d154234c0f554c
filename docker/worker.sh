#!/usr/bin/env bash
# Joins this node to the cluster of MAXPO_HEAD (host or host:port) and stays in the foreground; SIGTERM ends the node.
# Arguments go on to `ray start`.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_token
head=${MAXPO_HEAD:-}
[[ -n $head ]] || fail "MAXPO_HEAD is not set: the address of the head node, such as 10.0.0.1 or 10.0.0.1:$HEAD_PORT"
[[ $head == *:* ]] || head=$head:$HEAD_PORT
ip=$(node_ip)
# exec: signals reach Ray itself.
exec ray start --address="$head" --block --node-ip-address="$ip" "${NODE_PORTS[@]}" "$@"

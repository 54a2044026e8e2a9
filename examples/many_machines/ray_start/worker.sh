#!/usr/bin/env bash
# Joins this machine to the cluster of a head, until it is ended.
#
#   HEAD=10.0.0.1:6379 ./worker.sh
set -euo pipefail
# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

: "${HEAD:?names no head; set it to the address that head.sh printed, such as HEAD=10.0.0.1:6379}"
options=(--address="${HEAD}" --block --disable-usage-stats)
[[ -z "${ADDRESS:-}" ]] || options+=(--node-ip-address="${ADDRESS}")
[[ -z "${CPUS:-}" ]] || options+=(--num-cpus="${CPUS}")
[[ -z "${GPUS:-}" ]] || options+=(--num-gpus="${GPUS}")
exec ray start "${options[@]}" "$@"

#!/usr/bin/env bash
# Ray's head on this machine, until it is ended; Dagster and its runs are on this machine too (`compute.address: auto`).
#
#   ./head.sh            CPUS=0 keeps workers off this machine, GPUS=… where Ray does not find them
set -euo pipefail
# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

options=(--head --block --port="${PORT:-6379}" --disable-usage-stats)
[[ -z "${ADDRESS:-}" ]] || options+=(--node-ip-address="${ADDRESS}")
[[ -z "${CPUS:-}" ]] || options+=(--num-cpus="${CPUS}")
[[ -z "${GPUS:-}" ]] || options+=(--num-gpus="${GPUS}")
exec ray start "${options[@]}" "$@"

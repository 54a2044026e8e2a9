# What every process of the cluster finds in its environment: sourced by head.sh and worker.sh, the same on all machines.
# shellcheck shell=bash

# Your virtual environment: the same Python, and the same versions of everything, on every machine.
export PATH="${VENV:-/opt/semdedup/.venv}/bin:${PATH}"

# The store, as fsspec reads it when it is imported (or ~/.config/fsspec/conf.json, or AWS_…, on every machine):
# export FSSPEC_S3_ENDPOINT_URL=https://s3.example.com
# export FSSPEC_S3_KEY=… FSSPEC_S3_SECRET=…

# Workers share a machine's cores: one that waits must not spin.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
export RAY_USAGE_STATS_ENABLED=0
# Whoever reaches Ray's ports can run anything. With a token (`ray get-auth-token --generate` once, then ~/.ray/auth_token
# copied to every machine) only its holders can; `disabled` is for networks that nobody else is on. Said here, for a head
# that finds a token asks for it, while workers of whom nothing was said bring none.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
# Models come from a folder that every machine has, not from a hub; remove where each may download them.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

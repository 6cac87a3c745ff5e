#!/usr/bin/env bash
# Two processes on this machine: bash local.sh train --config run.yaml --output runs/two
set -euo pipefail
port="${PORT:-12355}"
export KERAS_BACKEND=jax
export KERAS_DISTRIBUTION_JOB_ADDRESSES="127.0.0.1:$port"
export KERAS_DISTRIBUTION_NUM_PROCESSES=2
KERAS_DISTRIBUTION_PROCESS_ID=1 keras-gpt "$@" &
trap 'kill $! 2>/dev/null || true' EXIT
KERAS_DISTRIBUTION_PROCESS_ID=0 keras-gpt "$@"
wait $!

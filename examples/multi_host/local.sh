#!/usr/bin/env bash
# Two processes on this machine: bash local.sh --data data --tokenizer tokenizer --output gpt
set -euo pipefail
python="${PYTHON:-python3}"
port="${PORT:-12355}"
export KERAS_DISTRIBUTION_JOB_ADDRESSES="127.0.0.1:$port,127.0.0.1:$port"
export KERAS_DISTRIBUTION_NUM_PROCESSES=2
folder="$(dirname "$0")"
KERAS_DISTRIBUTION_PROCESS_ID=1 "$python" "$folder/train.py" "$@" &
trap 'kill $! 2>/dev/null || true' EXIT
KERAS_DISTRIBUTION_PROCESS_ID=0 "$python" "$folder/train.py" "$@"
wait $!

#!/usr/bin/env bash
# One process on each node: sbatch --nodes 4 slurm.sh --data data --tokenizer tokenizer --output gpt
#SBATCH --ntasks-per-node=1
#SBATCH --job-name=keras-gpt
set -euo pipefail
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/:12355/' | paste -sd,)"
export KERAS_DISTRIBUTION_JOB_ADDRESSES="$hosts"
export KERAS_DISTRIBUTION_NUM_PROCESSES="$SLURM_NTASKS"
# of each process, where it runs; a node that fails ends the others
srun --kill-on-bad-exit=1 bash -c \
  'KERAS_DISTRIBUTION_PROCESS_ID=$SLURM_PROCID exec python3 "$@"' _ \
  "$SLURM_SUBMIT_DIR/train.py" "$@"

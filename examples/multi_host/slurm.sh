#!/usr/bin/env bash
# One process on each node, with all its devices; the folder is one that all nodes see:
# sbatch --nodes 4 slurm.sh train --config run.yaml --output runs/four
#SBATCH --ntasks-per-node=1
#SBATCH --job-name=keras-gpt
set -euo pipefail
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export KERAS_BACKEND=jax
export KERAS_DISTRIBUTION_JOB_ADDRESSES="$first:12355"
export KERAS_DISTRIBUTION_NUM_PROCESSES="$SLURM_NTASKS"
# of each process, where it runs; a node that fails ends the others
srun --kill-on-bad-exit=1 bash -c \
  'KERAS_DISTRIBUTION_PROCESS_ID=$SLURM_PROCID exec keras-gpt "$@"' _ "$@"

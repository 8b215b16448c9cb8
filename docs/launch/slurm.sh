#!/usr/bin/env bash
# Trains on GPUs under SLURM, one process a GPU: sbatch slurm.sh CONFIG [--option value ...]
#SBATCH --job-name=jaxdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Five minutes before its time is up SLURM sends SIGTERM to the tasks: they save and end with 75. JAX reads SLURM's
# variables. The folder has to be on storage that all nodes share.
set -uo pipefail
config=$1
shift
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/xla}

# Another task is lost: the others end themselves within 15 s, and srun need not kill them.
srun --kill-on-bad-exit=0 uv run --no-sync train.py "$config" --workdir "runs/$config" "$@"
code=$?
case $code in
  75 | 76 | 137) scontrol requeue "$SLURM_JOB_ID" ;; # stopped and saved; or a node was lost
esac
exit $code

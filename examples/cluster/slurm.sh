#!/bin/bash
# Slurm: one task a GPU, without torchrun. The job is queued again until the run has ended, however short its time limit.
#
#     sbatch examples/cluster/slurm.sh photos /shared/RUN mapet_base
#
#SBATCH --job-name=mapet --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
#SBATCH --time=4:00:00 --requeue --open-mode=append --output=mapet-%j.log
#SBATCH --signal=USR1@180
# Three minutes before the end, Slurm sends SIGUSR1 to every process. mapet then writes a checkpoint and exits with code 75.
set -uo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=4
export MAPET=${MAPET:-mapet}

# shellcheck disable=SC2016  (each task fills in its own numbers)
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    exec $MAPET pretrain "$0" --out "$1" --recipe "${@:2}"' "$@"
code=$?

# 75: time is up. 137, 139: a process was killed or crashed; those are tried three times.
if [ $code = 75 ] || { [ $code -gt 136 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code

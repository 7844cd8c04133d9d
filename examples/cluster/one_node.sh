#!/bin/bash
# One machine with GPUS GPUs (or, without any, GPUS processes on the CPU).
#
#     GPUS=8 bash examples/cluster/one_node.sh photos RUN mapet_tiny
#
# If a process dies, torchrun starts all of them again, up to three times, and the run goes on from its last checkpoint.
# Ctrl-C stops behind a checkpoint; torchrun allows two minutes for it. The same command continues.
set -euo pipefail
data=$1 run=$2 recipe=$3
shift 3
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
TORCHRUN=${TORCHRUN:-torchrun}

exec $TORCHRUN --nproc-per-node "${GPUS:-8}" --max-restarts 3 \
    -m mapet pretrain "$data" --recipe "$recipe" --out "$run" "$@"

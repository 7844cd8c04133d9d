#!/bin/bash
# Several machines. Start this on every one of them, with the same words; HOST is one of them, JOB any name of this job:
#
#     NODES=2 GPUS=8 HOST=node1 JOB=first bash examples/cluster/several_nodes.sh photos /shared/RUN mapet_base
#
# RUN must be on storage that all machines share. Images may be copied to each of them; the run compares them before it begins.
# The machines meet at HOST:29400. If a process or a machine is lost, the others wait up to 15 minutes for it to come back, and
# go on from the last checkpoint. NODES=1:2 goes on with what is left, as long as the batch size is a multiple of the processes.
set -euo pipefail
data=$1 run=$2 recipe=$3
shift 3
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
TORCHRUN=${TORCHRUN:-torchrun}

exec $TORCHRUN --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-8}" --max-restarts 10 \
    --rdzv-backend c10d --rdzv-endpoint "${HOST:?the name of one machine}:29400" --rdzv-id "${JOB:?any name}" \
    --rdzv-conf join_timeout=900 \
    -m mapet pretrain "$data" --recipe "$recipe" --out "$run" "$@"

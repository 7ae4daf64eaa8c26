#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: start a program as a Slurm job, a process per GPU.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME PROGRAM [ARGUMENT...]" >&2
    exit 2
fi
partition=$1
job_name=$2
shift 2

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
if [ -n "${PORT:-}" ]; then
    export MASTER_PORT=$PORT
fi
# SRUN_ARGS is a list of words.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$@" --launcher slurm

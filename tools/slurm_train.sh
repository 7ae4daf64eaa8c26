#!/usr/bin/env bash
# Train as a Slurm job.
set -eu

if [ $# -lt 3 ]; then
    cat >&2 <<USAGE
usage: $0 PARTITION JOB_NAME CONFIG [OPTION OF train.py...]

Example: GPUS=16 $0 gpu overlock configs/detection/cascade_overlock_s.py

Environment: GPUS (8, in all), GPUS_PER_NODE (at most 8), CPUS_PER_TASK (5), SRUN_ARGS (further
options of srun), PORT (29500), PYTHON (python).
USAGE
    exit 2
fi
here=$(dirname "$0")
partition=$1
job_name=$2
shift 2
exec "$here/srun.sh" "$partition" "$job_name" "$here/train.py" "$@"

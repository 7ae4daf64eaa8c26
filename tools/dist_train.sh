#!/usr/bin/env bash
# Train with several processes, one for each GPU, or without a GPU on the CPU.
set -eu

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    cat >&2 <<USAGE
usage: $0 CONFIG PROCESSES [OPTION OF train.py...]

On one machine:      $0 configs/detection/cascade_overlock_s.py 8
On each of several:  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 $0 CONFIG 8

Environment: NNODES (1), NODE_RANK, MASTER_ADDR, PORT (29500; on one machine any free one),
PYTHON (python).
USAGE
    exit 2
fi
here=$(dirname "$0")
config=$1
processes=$2
shift 2
exec "$here/torchrun.sh" "$processes" "$here/train.py" "$config" "$@"

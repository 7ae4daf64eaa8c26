#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: start a program with torchrun, here or as one node
# of several.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: $0 PROCESSES PROGRAM [ARGUMENT...]" >&2
    exit 2
fi
processes=$1
shift

nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?is the number of this node, from 0 to NNODES - 1}"
    : "${MASTER_ADDR:?is the address of node 0}"
    meeting=(
        --nnodes "$nodes" --node-rank "$NODE_RANK"
        --master-addr "$MASTER_ADDR" --master-port "${PORT:-29500}"
    )
elif [ -n "${PORT:-}" ]; then
    meeting=(--master-port "$PORT")
else
    meeting=(--standalone) # a free port, so that several runs can share a machine
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    "${meeting[@]}" --nproc-per-node "$processes" "$@" --launcher pytorch

#!/usr/bin/env bash
# Trains with torchrun. On one machine with all its GPUs:
#
#   CONFIG=configs/oxe-64-act-free-small.yaml TOKENS=/data/tokens TOKENIZER=/models/tokenizer OUTPUT=/runs/small \
#       scripts/torchrun/train.sh
#
# On several machines, run the same command on each with NODES=4 HEAD=node0:29500, where node0 is one of them. If a process dies, all
# processes restart from the newest checkpoint. PROCESSES=2 starts two processes per machine, also without GPUs. More arguments are passed
# to ivideogpt-train (`--training.steps 1000`).
set -euo pipefail

exec torchrun --nnodes "${NODES:-1}" --nproc_per_node "${PROCESSES:-gpu}" --max-restarts 3 --shutdown-timeout 300 \
    --rdzv_id train --rdzv_backend c10d --rdzv_endpoint "${HEAD:-localhost:0}" -m training \
    --config "$CONFIG" --tokens "$TOKENS" --tokenizer "$TOKENIZER" --output "$OUTPUT" "$@"

#!/usr/bin/env bash
# Trains on the machines of a DeepSpeed hostfile; one of them starts the others through pdsh and ssh. List your machines in
# scripts/hostfile/hosts (`slots` is the number of GPUs). The project must have the same path on all of them. Then:
#
#   CONFIG=configs/oxe-64-act-free-small.yaml TOKENS=/data/tokens TOKENIZER=/models/tokenizer OUTPUT=/runs/small \
#       scripts/hostfile/train.sh
#
# Nothing restarts automatically: run the same command again to resume from the newest checkpoint. Put environment variables for remote
# processes into `.deepspeed_env`, one per line. More arguments are passed to ivideogpt-train (`--training.steps 1000`).
set -euo pipefail

exec deepspeed --hostfile "${HOSTFILE:-$(dirname "$0")/hosts}" --no_local_rank --module training \
    --config "$CONFIG" --tokens "$TOKENS" --tokenizer "$TOKENIZER" --output "$OUTPUT" "$@"

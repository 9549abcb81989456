#!/usr/bin/env bash
# Train on the machines of a DeepSpeed hostfile, which one of them starts through pdsh and ssh. Name yours in
# scripts/hostfile/hosts (`slots` is the number of GPUs), then, with the project at the same place on all of them:
#
#   CONFIG=configs/oxe-64-act-free-small.yaml TOKENS=/data/tokens TOKENIZER=/models/tokenizer OUTPUT=/runs/small \
#       scripts/hostfile/train.sh
#
# Nothing restarts by itself: the same command goes on from the newest checkpoint. Variables of the environment that remote
# processes need stand in `.deepspeed_env`, a line each. More arguments go to ivideogpt-train (`--training.steps 1000`).
set -euo pipefail

exec deepspeed --hostfile "${HOSTFILE:-$(dirname "$0")/hosts}" --no_local_rank --module training \
    --config "$CONFIG" --tokens "$TOKENS" --tokenizer "$TOKENIZER" --output "$OUTPUT" "$@"

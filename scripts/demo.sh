#!/usr/bin/env bash
# The main job on small data that it makes itself: simulate, ingest, tokenize, pre-train, predict. Arguments go to
# `ivideogpt-demo` (see its --help).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_extra demo
export PATH="$PWD/.venv/bin:$PATH"
ivideogpt-demo "$@"

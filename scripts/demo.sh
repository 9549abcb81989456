#!/usr/bin/env bash
# Runs all stages on small simulated data: simulate, ingest, tokenize, pre-train, predict. Arguments are passed to
# `ivideogpt-demo` (see its --help).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_extra demo
export PATH="$PWD/.venv/bin:$PATH"
ivideogpt-demo "$@"

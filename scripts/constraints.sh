#!/usr/bin/env bash
# Writes scripts/constraints.txt: pinned versions of all packages that setup.cfg's extras need, for all supported Pythons.
# Keeps existing versions where possible; `--upgrade` takes the newest ones.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(python_command)" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
"$folder/bin/uv" pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
  --custom-compile-command ./scripts/constraints.sh --output-file scripts/constraints.txt setup.cfg "$@" >/dev/null

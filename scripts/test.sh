#!/usr/bin/env bash
# Lints, type-checks and tests the project in its own virtual environment. `--soak` adds the long tests; other arguments are
# passed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_extra dev
export PATH="$PWD/.venv/bin:$PATH"
# Tests start hundreds of processes: each module is compiled once.
unset PYTHONDONTWRITEBYTECODE
# Tests start many small processes, whose threads would only compete.
export OMP_NUM_THREADS=1

ruff format --check .
ruff check .
lint-imports --config setup.cfg
mypy
# Many tests wait for processes, so four workers keep two cores busy. Tests of one file run together and share fixtures; files run
# in the order of conftest.py, the longest first.
pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder "$@"

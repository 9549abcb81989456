#!/usr/bin/env bash
# Lints, type-checks and tests the project in its own virtual environment. `--soak` adds the long tests; other arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_extra dev
export PATH="$PWD/.venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
# Tests start many small processes; threads of their own would only get in each other's way.
export OMP_NUM_THREADS=1

ruff format --check .
ruff check .
lint-imports --config setup.cfg
mypy
# Much of the suite waits for processes: three workers keep two cores busy. A file's tests stay together and share what they make.
pytest --numprocesses 3 --dist loadfile "$@"

# Sourced by demo.sh and test.sh in the project's root. `install_extra EXTRA` creates the virtual environment `.venv` if needed, and
# installs an extra of the project into it, unless it is installed with the current versions already.

python_command() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or 3.12 is needed; install it, or set the variable PYTHON to its path." >&2
  return 1
}

install_extra() {
  local extra=$1 stamp wanted
  stamp=.venv/.installed-$extra
  wanted=$(cat setup.cfg pyproject.toml scripts/constraints.txt | sha256sum | cut -d' ' -f1)
  [ -x .venv/bin/python ] || "$(python_command)" -m venv .venv
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing (once; a few minutes, about 2 GB) ..." >&2
    # With all versions pinned, pip resolves nothing. The file is a constraint, not a list of requirements, because torch's CPU
    # build does not need the CUDA packages in it.
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable ".[$extra]"
    echo "$wanted" >"$stamp"
  fi
}

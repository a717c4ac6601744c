# shellcheck shell=bash
# Which Python and Node the scripts take that run them, and how their packages are provided. Sourced.

python=${PYTHON:-python3}
python_needed='Python 3.11 or newer with venv'
node_needed='Node 20 or newer with npm'

has_python() { runs "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; }

has_node() { runs node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' && runs npm --version; }

# Runs a command, unless it has succeeded before with the same file: once STAMP FILE COMMAND…
once() {
  local stamp=$1 file=$2
  shift 2
  if ! cmp -s "$file" "$stamp"; then
    "$@"
    cp "$file" "$stamp"
  fi
}

runs() { "$@" >/dev/null 2>&1 </dev/null; }

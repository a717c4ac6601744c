# shellcheck shell=bash
# Which Python and Node the scripts take that run them. Sourced.

python=${PYTHON:-python3}
python_needed='Python 3.11 or newer with venv'
node_needed='Node 20 or newer with npm'

has_python() { runs "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; }

has_node() { runs node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' && runs npm --version; }

runs() { "$@" >/dev/null 2>&1 </dev/null; }

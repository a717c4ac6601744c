#!/usr/bin/env bash
# Runs generators of code and validators on docs/schema and docs/asyncapi.yaml: see clients/generators.
# --missing: prints what it lacks in one line and fails, or says nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/runtimes.sh
source scripts/runtimes.sh

from=clients/generators
work=target/schema-generators

main() {
  local missing
  if ! missing=$(missing); then
    echo "$missing"
    return 1
  fi
  if [[ ${1:-} == --missing ]]; then return; fi
  mkdir -p "$work"
  # Node looks for packages beside the program that imports them.
  cp "$from"/{.npmrc,package.json,package-lock.json,check.mjs,check.py} "$work"
  cat "$from/requirements.txt" clients/requirements.txt >"$work/requirements"
  rm -rf "$work/out"
  once "$work/installed-node" "$from/package-lock.json" npm ci --prefix "$work"
  once "$work/installed-python" "$work/requirements" provide_python
  # Nothing of them in the work tree: check.mjs and check.py write to the folder that they are told.
  (cd "$work" && node check.mjs ../../docs out/node)
  "$work/venv/bin/python" "$work/check.py" docs "$work/out/python"
}

missing() {
  has_node || { echo "$node_needed is not installed here" && return 1; }
  has_python || { echo "$python_needed is not installed here" && return 1; }
}

provide_python() {
  "$python" -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$from/requirements.txt"
}

main "$@"

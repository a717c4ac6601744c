#!/usr/bin/env bash
# Checks the clients of other languages, and runs them and the examples with a live worker: see --help.
# Needs bash (3.2 is enough) and a Rust toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/runtimes.sh
source scripts/runtimes.sh

usage() {
  cat <<'EOT'
Usage: scripts/clients.sh [--generate]

Installs what clients/ needs (Python packages and Node packages, in the versions that are pinned there) under
target/clients, checks types and style, sees that the types that are generated from docs/schema are up to date, and runs
the clients' suites and the examples with a live worker (tests/it/clients.rs). What cannot run here, because Python, Node
or amqp-tools are not installed, is named, and the rest runs all the same.

--generate writes the generated types anew, and ends. It takes Python and Node.
EOT
}

prepared=$PWD/target/clients
left_out=''

main() {
  case ${1:-} in
    '' | --generate) ;;
    -h | --help) usage && return ;;
    *) usage >&2 && return 2 ;;
  esac
  mkdir -p "$prepared"
  export PYTHONDONTWRITEBYTECODE=1
  if [[ ${1:-} == --generate ]]; then
    generate
    return
  fi
  check_pins
  if has_python; then
    prepare_python
  else
    leave_out 'Python client and examples' "$python_needed"
    rm -rf "$prepared/venv"
  fi
  if has_node; then
    prepare_node
  else
    leave_out 'TypeScript client and example' "$node_needed"
    rm -rf "$prepared/typescript"
  fi
  rm -f "$prepared/amqp-tools"
  if runs amqp-publish --help && runs jq --version; then
    : >"$prepared/amqp-tools"
  else
    leave_out 'clients/examples/request.sh' 'amqp-tools and jq'
  fi

  [[ ! -x $prepared/venv/bin/python ]] || check_python
  [[ ! -d $prepared/typescript ]] || check_node
  echo '== the suites and the examples, with a live worker'
  scripts/services.sh rabbitmq
  # shellcheck source=/dev/null  # written by services.sh
  source target/services.env
  CLIENTS=$prepared cargo test --locked --workspace --test it clients::
  printf '%s' "$left_out"
}

# Packages are installed again only where the pinned versions have changed.
prepare_python() { once "$prepared/venv/pinned" clients/requirements.txt provide_python; }

provide_python() {
  echo "== Python packages: $prepared/venv"
  "$python" -m venv --clear "$prepared/venv"
  "$prepared/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement clients/requirements.txt
}

# The sources are copied, so that no node_modules lies among them.
prepare_node() {
  local to=$prepared/typescript
  mkdir -p "$to"
  once "$to/pinned" clients/typescript/package-lock.json provide_node "$to"
  rm -rf "$to/src" "$to/tests" "$to/dist"
  cp -R clients/typescript/{src,tests,package.json,tsconfig.json,generate.mjs} clients/examples/request.mjs "$to"
}

provide_node() {
  echo "== Node packages: $1"
  cp clients/typescript/package.json clients/typescript/package-lock.json "$1"
  (cd "$1" && npm ci --silent --no-audit --no-fund --ignore-scripts)
}

# Of Python's packages clients/requirements.txt alone names versions. npm has no such file: there, what two lists have in common
# must have one version.
check_pins() {
  local pins apart
  pins=$(grep -hoE '"[^"]+": "[0-9]+\.[0-9]+\.[0-9]+"' clients/{typescript,generators}/package.json | sort -u)
  apart=$(cut -d : -f 1 <<<"$pins" | uniq -d | tr '\n' ' ')
  if [[ -n $apart ]]; then
    echo "clients.sh: clients/typescript and clients/generators pin different versions of: $apart" >&2
    return 1
  fi
}

check_python() {
  echo '== Python: style, types, and whether they are as generated'
  (cd clients && "$prepared/venv/bin/ruff" check --quiet --cache-dir "$prepared/ruff" .)
  (cd clients/python && "$prepared/venv/bin/mypy" --strict --no-error-summary --cache-dir "$prepared/mypy" \
    tokenkeeper_client tests)
  clients/python/generate.sh "$prepared/venv/bin/python" docs/schema/messages.json "$prepared/wire.py"
  diff clients/python/tokenkeeper_client/wire.py "$prepared/wire.py" || out_of_date
}

check_node() {
  echo '== TypeScript: types, and whether they are as generated'
  (cd "$prepared/typescript" && node_modules/.bin/tsc && node generate.mjs "$OLDPWD/docs/schema/messages.json" "$prepared/wire.ts")
  diff clients/typescript/src/wire.ts "$prepared/wire.ts" || out_of_date
}

generate() {
  has_python || { lack "$python_needed" && return 1; }
  has_node || { lack "$node_needed" && return 1; }
  prepare_python
  prepare_node
  clients/python/generate.sh "$prepared/venv/bin/python" docs/schema/messages.json clients/python/tokenkeeper_client/wire.py
  (cd "$prepared/typescript" && node generate.mjs "$OLDPWD/docs/schema/messages.json" "$OLDPWD/clients/typescript/src/wire.ts")
}

out_of_date() {
  echo 'clients.sh: docs/schema has changed since: scripts/clients.sh --generate' >&2
  return 1
}

lack() { echo "clients.sh: --generate takes $1, which is not installed here" >&2; }

leave_out() {
  local line="== $1: NOT TESTED here, it takes $2"
  echo "$line"
  left_out+=$line$'\n'
}

main "$@"

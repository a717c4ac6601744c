#!/usr/bin/env bash
# Logs in at OAuth servers that others wrote: see --help.
# Needs bash (3.2 is enough) and a Rust toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/runtimes.sh
source scripts/runtimes.sh

usage() {
  cat <<'EOT'
Usage: scripts/oauth-servers.sh

Installs the OAuth servers of tests/oauth (Node packages, in the versions that are pinned there) under target/oauth, and runs the
tests that log in there (tests/it/login/servers.rs). Where Node is not installed it says so, and does nothing.
EOT
}

prepared=$PWD/target/oauth

main() {
  case ${1:-} in
    '') ;;
    -h | --help) usage && return ;;
    *) usage >&2 && return 2 ;;
  esac
  if ! has_node; then
    echo "== logins at servers of others: NOT TESTED here, it takes $node_needed"
    return
  fi
  mkdir -p "$prepared"
  if ! cmp -s "$prepared/pinned" tests/oauth/package-lock.json; then
    echo "== Node packages: $prepared"
    cp tests/oauth/package.json tests/oauth/package-lock.json "$prepared"
    (cd "$prepared" && npm ci --silent --no-audit --no-fund --ignore-scripts)
    cp tests/oauth/package-lock.json "$prepared/pinned"
  fi
  cp tests/oauth/server.mjs "$prepared"
  scripts/services.sh rabbitmq
  # shellcheck source=/dev/null  # written by services.sh
  source target/services.env
  OAUTH_SERVERS=$prepared cargo test --locked --workspace --test it login::servers::
}

main "$@"

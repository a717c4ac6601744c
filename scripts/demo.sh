#!/usr/bin/env bash
# Tells tokenkeeper's story by running it: see --help. Needs bash (3.2 is enough) and a Rust toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOT'
Usage: scripts/demo.sh

Shows in a few seconds what tokenkeeper does: two real workers on RabbitMQ, a simulated Bitbucket Server that kills
a token when it is refreshed, and a real git clone. Every claim of the story is checked as it is told; exits 1 where
one does not hold.

RabbitMQ is the one at AMQP_URL or on this machine, and is started or installed where there is none
(scripts/services.sh). The database is SQLite in a temporary folder. Whatever the story makes, queues included, is
gone when it ends, also by Ctrl-C. NO_COLOR=1 switches colours off.
EOT
}

main() {
  case ${1:-} in
    '') ;;
    -h | --help) usage && return ;;
    *) usage >&2 && return 2 ;;
  esac
  if ! command -v cargo >/dev/null; then
    echo 'demo.sh: there is no cargo; install a Rust toolchain: https://rustup.rs' >&2
    return 1
  fi
  scripts/services.sh rabbitmq
  # shellcheck source=/dev/null  # written by services.sh
  source target/services.env

  # The whole workspace's choice of features, as in every other build of it, so that nothing is compiled twice. The
  # messages tell where the programs are, wherever cargo is set up to put them.
  local messages demo
  messages=$(cargo build --locked --workspace --bin tokenkeeper --bin demo --message-format json-render-diagnostics)
  demo=$(sed -n 's|.*"executable":"\([^"]*/demo\)".*|\1|p' <<<"$messages")
  echo
  exec "$demo"
}

main "$@"

#!/usr/bin/env bash
# Measures tokenkeeper beside a bare echo worker on this machine's servers: see --help, and docs/benchmark.md. Arguments
# go to tests/bench. BENCH_PROFILE=dev runs what the tests have built anyway, to see that the benchmark itself works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
  # The whole workspace's choice of features, as in every other build of it, so that nothing is compiled twice. The
  # messages tell where the programs are, wherever cargo is set up to put them.
  local messages bench
  messages=$(cargo build --locked --workspace --profile "${BENCH_PROFILE:-release}" --bin tokenkeeper \
    --bin tokenkeeper-bench --message-format json-render-diagnostics)
  bench=$(sed -n 's|.*"executable":"\([^"]*/tokenkeeper-bench\)".*|\1|p' <<<"$messages")
  if ! is_help "$@"; then
    echo 'Servers that everything runs on (scripts/services.sh):'
    scripts/services.sh
    # shellcheck source=/dev/null  # written by services.sh
    source target/services.env
  fi
  exec "$bench" "$@"
}

is_help() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) return 0 ;;
    esac
  done
  return 1
}

main "$@"

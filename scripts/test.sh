#!/usr/bin/env bash
# Runs every test of the workspace against real servers. Arguments go to `cargo test`: scripts/test.sh decide::
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo 'Servers that the tests talk to (scripts/services.sh):'
scripts/services.sh
# shellcheck source=/dev/null  # written by services.sh
source target/services.env

# Tests wait most of the time: for a broker, for a lease to end. With one more than there are cores, no processor is idle.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc 2>/dev/null || sysctl -n hw.ncpu) + 1))}

echo
echo "cargo test --workspace --locked${*:+ $*}"
exec cargo test --workspace --locked "$@"

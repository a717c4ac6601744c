#!/usr/bin/env bash
# Fuzzes what comes from outside: see --help, and CONTRIBUTING.md, Fuzzing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

toolchain=${FUZZ_TOOLCHAIN:-nightly}
host=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
programs=$PWD/target/$host/release
targets=(fuzz_targets/*.rs)
targets=("${targets[@]##*/}")
targets=("${targets[@]%.rs}")

usage() {
  cat <<EOT
Usage: scripts/fuzz.sh [--seconds N] [--minimise] [TARGET…]

Builds the fuzzers and runs each TARGET (all by default) for N seconds (600), one after the other, on one core.
An input that breaks a promise is written to fuzz/artifacts/TARGET/ and ends the run with 1.
New inputs go to fuzz/found/TARGET/. --minimise takes those that reach new code over into fuzz/corpus/TARGET/, which
is committed, and fuzzes nothing.

Targets: ${targets[*]}
Needs a nightly compiler (rustup toolchain install nightly), and nothing else.
\`cargo fuzz run TARGET\` works as well.
EOT
}

main() {
  local seconds=600 minimise='' chosen=() target failed=0
  while (($# > 0)); do
    case $1 in
      --seconds) seconds=$2 && shift ;;
      --minimise) minimise=yes ;;
      -h | --help) usage && return ;;
      *) chosen+=("$1") ;;
    esac
    shift
  done
  ((${#chosen[@]} > 0)) || chosen=("${targets[@]}")
  build
  for target in "${chosen[@]}"; do
    if [[ -n $minimise ]]; then
      minimise "$target"
    else
      fuzz "$target" "$seconds" || failed=1
    fi
  done
  return "$failed"
}

# As cargo-fuzz builds with --sanitizer none: our code has no `unsafe`, and runs twice as fast without a sanitizer.
build() {
  local coverage=(
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
  )
  # --target keeps these away from build scripts.
  # --target-dir: CARGO_TARGET_DIR would put the programs elsewhere.
  RUSTFLAGS="--cfg fuzzing ${coverage[*]}" cargo "+$toolchain" build --release --locked --target "$host" --target-dir target --bins
}

# A run that takes too long, or too much memory for an input of this length, is a finding as well.
fuzz() {
  local target=$1 seconds=$2
  mkdir -p "found/$target" "artifacts/$target"
  echo "== $target: $seconds s"
  nice -n 19 "$programs/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=64 \
    -max_len=65536 -print_final_stats=1 -verbosity=0 -close_fd_mask=1 -artifact_prefix="artifacts/$target/" \
    "found/$target" "corpus/$target"
}

# libFuzzer keeps of several inputs that reach the same code the smallest.
minimise() {
  local target=$1 kept
  mkdir -p "found/$target"
  kept=$(mktemp -d)
  "$programs/$target" -merge=1 -max_len=4096 -verbosity=0 "$kept" "corpus/$target" "found/$target"
  cp -n "$kept"/* "corpus/$target/"
  rm -rf "$kept"
  echo "== $target: $(find "corpus/$target" -type f | wc -l) inputs"
}

main "$@"

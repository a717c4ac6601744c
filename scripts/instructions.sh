#!/usr/bin/env bash
# Counts the instructions of the pure path and compares them with what is committed: see --help.
# Needs bash and coreutils; valgrind, which it installs by apt-get where that is possible.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

baseline=tests/instructions/baseline
# Where callgrind leaves its profiles, for callgrind_annotate.
profiles=target/instructions
# By how much a count may differ, in percent.
tolerance=5

usage() {
  cat <<EOT
Usage: scripts/instructions.sh [--accept]

Runs every case of tests/instructions/src/main.rs under callgrind and compares its instructions, allocations included, with
$baseline. A count that differs by more than $tolerance % fails: more of them is a slower path, and where
they are fewer the baseline no longer guards what was gained.

  --accept   write what was counted into $baseline; commit it together with its reason

Where the instructions go: callgrind_annotate $profiles/CASE.out
EOT
}

main() {
  local accept=''
  case ${1:-} in
    '') ;;
    --accept) accept=yes ;;
    -h | --help) usage && return ;;
    *) usage >&2 && return 2 ;;
  esac
  if [[ $(uname -sm) != 'Linux x86_64' ]]; then
    echo "not counted: the baseline is for x86_64 Linux, this is $(uname -sm)"
    return
  fi
  provide_valgrind
  build
  mkdir -p "$profiles"
  rounds=$("$bench" --rounds)
  local name counted=''
  for name in $("$bench" --cases); do
    counted+="$name $(count "$name")"$'\n'
  done
  if [[ $accept ]]; then
    write_baseline "$counted"
  else
    compare "$counted"
  fi
}

provide_valgrind() {
  ! command -v valgrind >/dev/null || return 0
  if ((EUID == 0)) && command -v apt-get >/dev/null; then
    local patience=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    export DEBIAN_FRONTEND=noninteractive
    echo 'installing valgrind by apt-get'
    apt-get "${patience[@]}" update >/dev/null &&
      apt-get "${patience[@]}" install --yes --no-install-recommends valgrind libc6-dbg >/dev/null &&
      return
  fi
  echo 'instructions.sh: there is no valgrind; install it (Debian, Ubuntu: apt-get install valgrind)' >&2
  return 1
}

# Sets `bench` to the program. Optimised is what the path consists of: our own crates here, those they call by
# [profile.dev.package] in Cargo.toml. The rest of the tree is what the tests are built from: nothing is compiled
# twice. One codegen unit and nothing incremental, or a count would depend on how unrelated code was cut up.
build() {
  local optimised=() package message
  for package in tokenkeeper tokenkeeper-instructions; do
    package=profile.dev.package.$package
    optimised+=(--config "$package.opt-level=3" --config "$package.codegen-units=1"
      --config "$package.debug-assertions=false" --config "$package.overflow-checks=false")
  done
  message=$(CARGO_INCREMENTAL=0 cargo build --workspace --locked --bench instructions "${optimised[@]}" \
    --message-format json-render-diagnostics | grep '"name":"instructions"' | tail -n 1)
  bench=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$message")
  [[ -x $bench ]] || { echo 'instructions.sh: cargo built no program' >&2 && return 1; }
}

# The instructions of one round of a case. Nothing of the environment gets in: the stack's layout depends on it.
count() {
  local out=$profiles/$1.out log=$profiles/$1.log total
  rm -f "$out"
  env -i "$(command -v valgrind)" --tool=callgrind --callgrind-out-file="$out" --collect-atstart=no \
    --toggle-collect='*measured*' "$bench" "$1" >"$log" 2>&1 || { cat "$log" >&2 && return 1; }
  total=$(sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$out" | head -n 1)
  ((total > 0)) || { echo "instructions.sh: callgrind collected nothing for $1" >&2 && return 1; }
  echo $((total / rounds))
}

write_baseline() {
  {
    echo "# Instructions of one round of each case. Written by scripts/instructions.sh --accept; do not edit."
    echo "# $(rustc --version)"
    printf '%s' "$1"
  } >"$baseline"
  cat "$baseline"
}

compare() {
  local name now before status=0 change
  printf '%-30s %10s %10s %9s\n' case baseline now change
  while read -r name now; do
    before=$(awk -v name="$name" '$1 == name { print $2 }' "$baseline")
    if [[ ! $before ]]; then
      printf '%-30s %10s %10d   FAILED: has no baseline\n' "$name" - "$now"
      status=1
      continue
    fi
    change=$(awk -v now="$now" -v before="$before" 'BEGIN { printf "%+.1f", 100 * (now - before) / before }')
    printf '%-30s %10d %10d %7s %%' "$name" "$before" "$now" "$change"
    if ((100 * (now > before ? now - before : before - now) > tolerance * before)); then
      printf '   FAILED: more than %d %%' "$tolerance"
      status=1
    fi
    echo
  done <<<"${1%$'\n'}"
  ((status)) || return 0
  cat >&2 <<EOT

The pure path does not take what it took. Where that was not meant, look where the instructions go:
  callgrind_annotate $profiles/CASE.out
Where it was, accept it and commit $baseline with the reason:
  scripts/instructions.sh --accept
The baseline was counted with $(sed -n 's/^# \(rustc .*\)/\1/p' "$baseline"); here is $(rustc --version).
EOT
  return 1
}

main "$@"

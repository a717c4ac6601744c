#!/usr/bin/env bash
# Writes the contract for programs: docs/schema/ and docs/asyncapi.yaml, as `tokenkeeper schema` prints them.
# Builds tokenkeeper, unless TOKENKEEPER says where one is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
  if [[ -z ${TOKENKEEPER:-} ]]; then
    cargo build --locked --workspace
    TOKENKEEPER=${CARGO_TARGET_DIR:-target}/debug/tokenkeeper
  fi
  local name
  for name in $("$TOKENKEEPER" schema --format examples | sed -n 's/^  "\([a-z.]*\)": \[$/\1/p'); do
    write "docs/schema/$name.json" "$name"
  done
  write docs/schema/messages.json
  write docs/schema/examples.json --format examples
  write docs/asyncapi.yaml --format asyncapi
}

# A document that cannot be printed leaves the old one alone.
write() {
  local file=$1 text
  shift
  text=$("$TOKENKEEPER" schema "$@")
  printf '%s\n' "$text" >"$file"
}

main

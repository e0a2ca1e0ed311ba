#!/usr/bin/env bash
# Searches all states of the lease protocol's model with Spin: the protocol has no fault, and each of the faults that
# can be put into it is found.
#   tests/formal/check.sh
set -euo pipefail
model=$(cd "$(dirname "$0")" && pwd)/lease.pml
command -v spin >/dev/null || { echo "spin is missing: deploy/install_packages.sh test" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

search() {  # VARIANT EXPECTED
  spin -a "-D$1" "$model" >spin.log && cc -O2 -DSAFETY -o pan pan.c && ./pan >"$1.log"
  local states
  states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$1.log")
  if grep -q "$2" "$1.log"; then
    echo "$1: ${states} states, as expected: $2"
  else
    cat "$1.log" >&2
    echo "$1: expected '$2'" >&2
    exit 1
  fi
}
search AS_IT_IS 'errors: 0'
search NO_FENCE 'assertion violated'
search STALE_RENEWAL 'assertion violated'

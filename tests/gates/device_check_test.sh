#!/usr/bin/env bash
# bench/device_check.sh where there is no GPU: it says why and ends with 77; its dry run does every step on the
# emulated backend and shows no figure. Usage: device_check_test.sh BUILD_DIRECTORY
set -euo pipefail

check=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/bench/device_check.sh
fail() { printf '%s\n' "$@" >&2; exit 1; }
bash -n "$check"

status=0
said=$(CUDA_VISIBLE_DEVICES='' "$check" 2>&1) || status=$?
[[ $status == 77 ]] || fail "without a device it ended with $status, expected 77:" "$said"
[[ $said == "no usable GPU: "* && $said != *$'\n'* ]] || fail "expected one line with the reason:" "$said"

said=$("$check" --dry-run --no-build --build-dir "$1" 2>&1) || fail "the dry run failed:" "$said"
# Seven models, two weight types.
models=$(grep -c 'ran decode 1, decode 2, read 3, read 20; states were copied' <<<"$said") || true
[[ $models == 14 ]] || fail "$models models ran, expected 14:" "$said"
[[ $said == *"all tests passed on cuda-emu"* ]] || fail "tests did not pass:" "$said"
if grep -E '[0-9] *(%|[kMG]?B\b|[GT]?B/s|tokens/s|[GT]?FLOP|ms\b|s\b)|measured' <<<"$said"; then
  fail "the dry run shows figures:" "$said"
fi

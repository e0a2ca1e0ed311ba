#!/usr/bin/env bash
# What is too long for every change: both sanitizers over all tests, the fuzzers, clang-tidy over all
# sources, a server's promises. Idempotent.
#   deploy/run_weekly.sh [PART...]      parts: asan tsan fuzz tidy promises; all of them by default
# Processor hours of each, on two cores: tidy 0.25, without the build. The others compile everything anew, about 0.6;
# then asan's tests take 0.4 and conformance_test 0.3 or more beside them, tsan's about as long, and a fuzzer one minute.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=("$@")
[[ $# -gt 0 ]] || parts=(asan tsan fuzz tidy promises)

deploy/install_packages.sh test
for part in "${parts[@]}"; do
  echo "== $part"
  case $part in
    asan | tsan) deploy/run_tests.sh "$part" ;;
    fuzz) cmake --preset fuzz >/dev/null && cmake --build --preset fuzz --parallel "$(nproc)" && ctest --preset fuzz ;;
    tidy) # generated headers must be there
      cmake --preset release >/dev/null && cmake --build --preset release --parallel "$(nproc)"
      tests/gates/clang_check.py tidy build-release engine memstore server client ;;
    promises)
      cmake --preset release >/dev/null && cmake --build --preset release --parallel "$(nproc)"
      tests/acceptance.py ;;
    *) echo "usage: $0 [asan|tsan|fuzz|tidy|promises]..." >&2; exit 2 ;;
  esac
done

#!/usr/bin/env bash
# Builds everything in the release preset and runs all tests. Idempotent.
#   deploy/run_tests.sh [preset]      preset: release (default), dev, asan, tsan
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}

echo "== packages"
deploy/install_packages.sh test
echo "== build ($preset)"
# A warning is an error where it is known that there is none: in the preset that CI builds.
werror=OFF
[[ $preset == release ]] && werror=ON
cmake --preset "$preset" -DMNEME_WERROR=$werror >/dev/null
cmake --build --preset "$preset" --parallel "$(nproc)"
echo "== tests ($preset)"
ctest --preset "$preset" --parallel "$(nproc)"

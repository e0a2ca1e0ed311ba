#!/usr/bin/env bash
# The long version of e2e_kill_test: 200 times SIGKILL under load, a few minutes.
#
#   tests/e2e/kill_200.sh [build folder] [seed]      default: build-release, the date's number
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build-release}
cmake --build "$build" --target e2e_kill_test
exec "$build/tests/e2e/e2e_kill_test" --kills 200 --seed "${2:-$(date +%Y%m%d)}"

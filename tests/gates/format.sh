#!/usr/bin/env bash
# Every tracked C++ source is as clang-format 14 (Debian 12's) would write it.
set -euo pipefail
cd "$(dirname "$0")/../.."
format=$(command -v clang-format-14 || command -v clang-format) || {
  echo "clang-format is missing: run deploy/install_packages.sh test" >&2
  exit 1
}
"$format" --version | grep -q 'version 14\.' || {
  echo "$("$format" --version) would format otherwise than version 14 does" >&2
  exit 1
}
# A clone that another user owns is still a clone.
git -c safe.directory="$PWD" ls-files -z '*.h' '*.cc' '*.inc' '*.cu' '*.cuh' | grep -zv '_list\.inc$' |
  xargs -0 "$format" --dry-run -Werror

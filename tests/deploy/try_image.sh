#!/usr/bin/env bash
# Builds the Dockerfile's image and runs it, with neither a container engine nor a registry: Debian's buildah, without
# namespaces, over a base that debootstrap makes in the place of debian:12-slim. Then asks the running container what an
# orchestrator relies on, and ends it as one does.
#
#   tests/deploy/try_image.sh [--backend cpu|cuda] [--keep] [FOLDER]
#
# FOLDER (/var/tmp/mneme-image) takes 8 GB and keeps the base and the layers, so that a second run builds only what
# changed; --keep leaves the image in it. As root; about 15 minutes on two cores the first time. What may be the
# image's size, in MB: 200, of the CUDA backend 250.
set -euo pipefail
cd "$(dirname "$0")/../.."

backend=cpu keep=false
while [[ ${1:-} == --* ]]; do
  case $1 in
    --backend) backend=$2; shift 2 ;;
    --keep) keep=true; shift ;;
    *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
done
folder=${1:-/var/tmp/mneme-image}
case $backend in cpu) most_mb=200 ;; cuda) most_mb=250 ;; *) echo "--backend: cpu or cuda, not $backend" >&2; exit 2 ;; esac
[[ $EUID -eq 0 ]] || { echo "$0: run as root: it makes a file system with owners and devices" >&2; exit 1; }

missing=()
for package in buildah debootstrap; do command -v $package >/dev/null || missing+=($package); done
if [[ ${#missing[@]} -gt 0 ]]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

mkdir -p "$folder"
export BUILDAH_ISOLATION=chroot BUILDAH_FORMAT=docker  # OCI's format has no HEALTHCHECK
in_store() { local command=$1; shift; buildah --root "$folder/store" --runroot "$folder/run" "$command" "$@"; }
image=mneme:try-$backend

# ---- the base: as the registry's, with what the slim one leaves out left out
base=docker.io/library/debian:12-slim
if ! in_store inspect --type image $base >/dev/null 2>&1; then
  echo "base: Debian 12 by debootstrap"
  rm -rf "$folder/base"
  debootstrap --variant=minbase bookworm "$folder/base" >"$folder/debootstrap.log" ||
    { tail -20 "$folder/debootstrap.log" >&2; exit 1; }
  rm -rf "$folder"/base/var/cache/apt/archives/*.deb "$folder"/base/var/lib/apt/lists/* \
    "$folder"/base/usr/share/{man,info,locale,doc-base,lintian}/*
  find "$folder/base/usr/share/doc" -type f ! -name copyright -delete
  printf 'path-exclude /usr/share/%s\n' 'man/*' 'info/*' 'locale/*' 'doc/*' >"$folder/base/etc/dpkg/dpkg.cfg.d/slim"
  echo 'path-include /usr/share/doc/*/copyright' >>"$folder/base/etc/dpkg/dpkg.cfg.d/slim"
  working=$(in_store from scratch)
  in_store add --quiet "$working" "$folder/base" / >/dev/null
  in_store commit --quiet --rm "$working" $base >/dev/null
  rm -rf "$folder/base"
fi

# ---- the image
revision=$(git rev-parse HEAD)
in_store bud --layers --pull-never --build-arg BACKEND="$backend" --build-arg REVISION="$revision" -t "$image" . 2>&1 |
  tee "$folder/build.log" | grep --line-buffered -E '^(STEP|licences|COMMIT|Error)' || { tail -30 "$folder/build.log" >&2; exit 1; }
in_store inspect --type image "$image" >"$folder/image.json"

failures=0
is() {  # WHAT EXPECTED GOT
  if [[ $3 == "$2" ]]; then echo "ok    $1: $3"; else echo "FAIL  $1: $3, expected $2"; failures=$((failures + 1)); fi
}
# Of the image's configuration: a value, or a list's values, one a line.
field() {
  python3 - "$folder/image.json" "$@" <<'END'
import json, sys
value = json.load(open(sys.argv[1]))["Docker"]["config"]
for key in sys.argv[2:]: value = value[key]
print("\n".join(value) if isinstance(value, list) else value)
END
}
is "user" 10001:10001 "$(field User)"
is "revision" "$revision" "$(field Labels org.opencontainers.image.revision)"
is "stop signal" SIGTERM "$(field StopSignal)"

# ---- a container of it, with a checkpoint from outside
container=$(in_store from --pull-never "$image")
trap 'in_store rm "$container" >/dev/null 2>&1; $keep || in_store rmi "$image" >/dev/null 2>&1 || true' EXIT
root=$(in_store mount "$container")
megabytes=$(($(du -sx --block-size=1000000 "$root" | cut -f1)))
if ((megabytes <= most_mb)); then echo "ok    size: $megabytes MB, at most $most_mb"; else echo "FAIL  size: $megabytes MB, expected at most $most_mb"; failures=$((failures + 1)); fi
left=$(cd "$root" && ls -d usr/bin/g++ src .git 2>/dev/null | xargs || true)
is "compilers, sources and history in it" none "${left:-none}"

run() { in_store run --isolation chroot --volume "$PWD/train/checkpoints:/models:ro" "$container" -- "$@"; }
mapfile -t entry < <(field Entrypoint)
check=$(field Healthcheck Test | tail -1)  # after CMD-SHELL
model=$(cd train/checkpoints && ls -d rwkv7* | head -1)
start() { run "${entry[@]}" --model "tiny=/models/$model" >"$folder/server.log" 2>&1 & runner=$!; }
server_pid() { pgrep -u 10001 -x mneme-server || true; }
healthy() {  # the image's own check, as the orchestrator runs it
  for _ in {1..60}; do
    if run /bin/sh -c "$check" >"$folder/health.log" 2>&1; then tail -1 "$folder/health.log"; return; fi
    sleep 1
  done
  cat "$folder/health.log" "$folder/server.log" >&2
  echo "not serving"
}
start
is "health check" SERVING "$(healthy)"
is "user that runs it" 10001 "$(ps -o uid= -p "$(server_pid)" | tr -d ' ')"
run mneme sessions create image >"$folder/client.log" 2>&1
before=$(run mneme generate --session image "the keeper of" 2>>"$folder/client.log" || true)
kill -KILL "$(server_pid)"; wait $runner || true
start
is "health check after SIGKILL" SERVING "$(healthy)"
is "the session is there" image "$(run mneme sessions list 2>&1 | grep -o '\bimage\b' | head -1)"
kill -TERM "$(server_pid)"
code=0; wait $runner || code=$?
is "exit after SIGTERM" 0 "$code"
[[ -n $before ]] || { cat "$folder/client.log"; echo "FAIL  no text was generated"; failures=$((failures + 1)); }

echo "image: $megabytes MB, $failures failures"
((failures == 0))

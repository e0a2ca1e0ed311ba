#!/usr/bin/env bash
# From a bare Debian 12 machine to a session that survives kill -9, in one command. Idempotent.
#
#   deploy/quickstart.sh          (as root, or with sudo installed)
#
# Installs what is missing, builds, fetches SmolLM2-135M-Instruct, starts the server with RocksDB under
# data/quickstart, streams a chat turn, lets the session read a long document, kills the server with
# SIGKILL, starts it again, and asks the same session to go on.
set -euo pipefail
cd "$(dirname "$0")/.."

data=data/quickstart
server_log=$data/server.log
session=demo
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
bin=build-release
server_pid=

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
mneme() { echo "\$ mneme $*"; "$bin/client/mneme" --server "127.0.0.1:$port" "$@"; }

start_server() {
  : >"$server_log"
  "$bin/server/mneme-server" --model "smollm2=$model" --engine.window_tokens 2048 \
    --store.path "$data/store" --listen.address 127.0.0.1:0 --listen.metrics_address 127.0.0.1:0 \
    >"$server_log" 2>&1 &
  server_pid=$!
  for _ in $(seq 300); do
    port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$server_log")
    [[ -n $port ]] && return
    kill -0 "$server_pid" 2>/dev/null || { cat "$server_log" >&2; exit 1; }
    sleep 0.1
  done
  echo "the server did not start within 30 s; its log:" >&2
  cat "$server_log" >&2
  exit 1
}
stop_server() { [[ -z $server_pid ]] || { kill -"$1" "$server_pid" 2>/dev/null || true; wait "$server_pid" 2>/dev/null || true; server_pid=; }; }
trap 'stop_server TERM' EXIT

say "packages"
deploy/install_packages.sh test
say "build"
cmake --preset release >/dev/null
cmake --build --preset release --parallel "$(nproc)" --target mneme-server mneme-cli
say "model"
deploy/fetch_smollm2.sh
mkdir -p "$data"
[[ -s $data/genesis.txt ]] || bible gen1:1-gen30:43 </dev/null >"$data/genesis.txt"

say "server: one model, sessions in RocksDB under $data/store"
start_server
grep -v '^{' "$server_log" || true
mneme models

say "a new session; its first chat turn streams"
mneme sessions delete "$session" --purge >/dev/null 2>&1 || true
mneme chat "$session" --temperature 0 <<<"In one sentence: what is a long-context language model?"

say "the session reads $(wc -c <"$data/genesis.txt") bytes; its state does not grow"
mneme ingest "$data/genesis.txt" --session "$session"
mneme sessions get "$session"

say "kill -9 the server, start it again: the same session goes on"
echo "\$ kill -9 $server_pid"
stop_server KILL
start_server
mneme sessions get "$session"
mneme generate --session "$session" --chat --temperature 0 --max-tokens 80 --usage \
  "Thank you for reading. Who is Jacob?"

stop_server TERM
trap - EXIT
say "done. Go on by hand:"
cat <<EOF
  $bin/server/mneme-server --model smollm2=$model --engine.window_tokens 2048 --store.path $data/store &
  $bin/client/mneme chat $session            # the conversation above, continued
  $bin/client/mneme sessions fork $session --id other
  $bin/client/mneme --help
EOF

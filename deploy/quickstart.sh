#!/usr/bin/env bash
# From a bare Debian 12 machine to a session that survives kill -9, in one command. Idempotent.
#
#   deploy/quickstart.sh          (as root, or with sudo installed)
#
# Installs what is missing, builds, fetches SmolLM2-135M-Instruct, starts the server with RocksDB under
# data/quickstart, streams a chat turn, lets a session read a long document, kills the server with
# SIGKILL, starts it again, and asks the same session to go on. Then a small RWKV-7 is given a million
# tokens with a number hidden near their beginning, and asked for it. Each run makes sessions of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

data=data/quickstart
server_out=$data/server.out   # what it tells people
server_log=$data/server.log   # JSON lines
now=$(date +%m%d-%H%M%S)
session=demo-$now
reader=reader-$now
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
memory_model=train/checkpoints/rwkv7-passkey
bin=build-release
server_pid=
port=

bold='' dim='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'
fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
fail() { printf '\nquickstart: %s\n' "$*" >&2; exit 1; }
mneme() { "$bin/client/mneme" --server "127.0.0.1:$port" "$@"; }
show() { printf '%s$ mneme %s%s\n' "$dim" "${*@Q}" "$plain"; mneme "$@"; }

start_server() {
  : >"$server_out"
  "$bin/server/mneme-server" --model "smollm2=$model" --model "rwkv7=$memory_model" \
    --engine.window_tokens 2048 --store.path "$data/store" --listen.address 127.0.0.1:0 --listen.metrics_address 127.0.0.1:0 \
    --drain.pre_stop_delay 0s >"$server_out" 2>>"$server_log" &
  server_pid=$!
  port=
  for _ in $(seq 600); do
    port=$(sed -n 's/^listening on .*:\([0-9]*\)$/\1/p' "$server_out")
    if [[ -n $port ]]; then return; fi
    kill -0 "$server_pid" 2>/dev/null || { tail -n 20 "$server_log" >&2; fail "the server did not start; its last words are above"; }
    sleep 0.1
  done
  tail -n 20 "$server_log" >&2
  fail "the server did not listen within 60 s; the end of its log is above"
}
stop_server() {
  [[ -n $server_pid ]] || return 0
  kill -"$1" "$server_pid" 2>/dev/null || true
  wait "$server_pid" 2>/dev/null || true
  server_pid=
}
trap 'stop_server TERM' EXIT

say "packages"
deploy/install_packages.sh quickstart
say "build"
cmake --preset release >/dev/null
cmake --build --preset release --parallel "$(nproc)" --target mneme-server mneme
say "model"
deploy/fetch_smollm2.sh
mkdir -p "$data"
if [[ ! -s $data/genesis.txt ]]; then
  bible gen1:1-gen27:46 </dev/null >"$data/genesis.new"
  mv "$data/genesis.new" "$data/genesis.txt"
fi

say "a server: two models, sessions in RocksDB under $data/store"
start_server
cat "$server_out"
show models

say "a new session; its first answer streams"
show chat "$session" --model smollm2 --temperature 0 --max-tokens 100 -v <<<"Write one sentence about the sea."

say "the session reads $(wc -c <"$data/genesis.txt") bytes; its state keeps its size"
show ingest "$data/genesis.txt" --session "$session"
show sessions get "$session"

say "kill -9; then the server starts again"
printf '%s$ kill -9 %s%s\n' "$dim" "$server_pid" "$plain"
stop_server KILL 2>/dev/null
start_server
show sessions get "$session"

say "the same session goes on: nothing is read again"
show chat "$session" --temperature 0 --max-tokens 80 -v <<<"Thank you for reading. Write one more sentence about the sea."
# The same claim, checked: a turn's usage says what was recomputed.
usage=$(mneme generate --session "$session" --max-tokens 1 --temperature 0 --json | tail -n 1)
grep -q '"recomputed_tokens":0,' <<<"$usage" || fail "tokens were recomputed: $usage"

# 2^20 bytes of the King James Bible without verse numbers, this model's tokens; the needle goes in after the first 20,000.
key=$(shuf -i 10000-99999 -n 1)
needle="The pass key is $key. Remember it. $key is the pass key. "
million=$data/million.txt
rest=$((1048576 - ${#needle}))
bible -f gen1:1-rev22:21 </dev/null | sed 's/^[^ ]* //' | tr '\n' ' ' >"$data/bible.txt"
{
  head -c 20000 "$data/bible.txt"
  printf '%s' "$needle"
  head -c "$rest" "$data/bible.txt" | tail -c "$((rest - 20000))"
} >"$million"
say "another model: $(wc -c <"$million") tokens to read, and the pass key $key hidden after the first 20,000"
show sessions create "$reader" --model rwkv7
show ingest "$million" --session "$reader"
show sessions get "$reader"
say "a million tokens later, on a fork: what was the key?"
show sessions fork "$reader" "$reader-asked"
show generate 'What is the pass key? The pass key is ' --session "$reader-asked" --max-tokens 5 --temperature 0 |
  tee "$data/answer.txt"
grep -q "$key" "$data/answer.txt" || fail "the key was $key"

stop_server TERM
trap - EXIT
say "done. Go on by hand:"
cat <<END
  $bin/server/mneme-server --model smollm2=$model --engine.window_tokens 2048 --store.path $data/store &
  $bin/client/mneme chat $session               # the conversation above, continued
  $bin/client/mneme sessions fork $session other
  $bin/client/mneme --help
END

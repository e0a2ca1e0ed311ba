#!/usr/bin/env bash
# Three servers on one PostgreSQL with a synchronous standby, behind HAProxy, watched by Prometheus: on this machine,
# without containers. Conversations run through it while one server is killed, another stands still for longer than
# its leases last, and the database fails over to its standby. At the end each session is held against what its
# client was told: nothing that was acknowledged is missing. Two minutes beside a built tree.
#
#   deploy/cluster_demo.sh [--sessions 12] [--keep] [BUILD]     BUILD: build-release
#
# --keep leaves everything running until Enter, for a look around. Exit code 1 if anything was lost.
set -euo pipefail
cd "$(dirname "$0")/.."

sessions=12 keep=false
while [[ ${1:-} == --* ]]; do
  case $1 in
    --sessions) sessions=$2; shift 2 ;;
    --keep) keep=true; shift ;;
    *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
done
build=${1:-build-release}
server=$build/server/mneme-server cli=$build/client/mneme
[[ -x $server && -x $cli ]] || { echo "$0: $build has no mneme-server and mneme: build them first (README.md)" >&2; exit 1; }
postgres=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
PATH=$PATH:/usr/sbin
for program in "$postgres/postgres" haproxy prometheus; do
  command -v "$program" >/dev/null || { echo "$0: ${program##*/} is missing: deploy/install_packages.sh test" >&2; exit 1; }
done

folder=$(mktemp -d /tmp/mneme-cluster.XXXXXX)
chmod 755 "$folder"
bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '%s%4d s  %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

declare -A pids
finish() {
  touch "$folder/stop-talking"
  for name in "${!pids[@]}"; do kill -KILL "${pids[$name]}" 2>/dev/null || true; done
  for data in primary standby; do as_postgres "$postgres/pg_ctl" -D "$folder/$data" -m immediate stop >/dev/null 2>&1 || true; done
  wait 2>/dev/null || true
  [[ ${ended:-no} == well ]] && rm -rf "$folder" || echo "logs: $folder" >&2
}
trap finish EXIT

# ---- PostgreSQL, which does not run as root
as_postgres() { "$@"; }
if [[ $EUID -eq 0 ]]; then
  owner=nobody
  id postgres >/dev/null 2>&1 && owner=postgres
  as_postgres() { runuser -u "$owner" -- "$@"; }
fi
primary_port=$(free_port) standby_port=$(free_port)
install -d -m 700 ${owner:+-o "$owner"} "$folder"/{primary,standby}
as_postgres "$postgres/initdb" -D "$folder/primary" -U mneme --auth=trust --encoding=UTF8 >"$folder/initdb.log"
run_postgres() {  # DATA PORT
  as_postgres "$postgres/pg_ctl" -D "$folder/$1" -w -l "$folder/$1/log" \
    -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200" start >"$folder/$1.start.log"
}
sql() { "$postgres/psql" -h 127.0.0.1 -p "$1" -U mneme -d postgres -v ON_ERROR_STOP=1 -Atqc "$2"; }
run_postgres primary "$primary_port"
sql "$primary_port" "CREATE DATABASE mneme"
as_postgres "$postgres/pg_basebackup" -h 127.0.0.1 -p "$primary_port" -U mneme -D "$folder/standby" -R -X stream -c fast
run_postgres standby "$standby_port"
sql "$primary_port" "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'"
sql "$primary_port" "SELECT pg_reload_conf()" >/dev/null
until [[ $(sql "$primary_port" "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'") == 1 ]]; do sleep 0.1; done
say "PostgreSQL on port $primary_port, its synchronous standby on $standby_port"

# ---- servers
store="postgresql://mneme@127.0.0.1:$primary_port,127.0.0.1:$standby_port/mneme?target_session_attrs=read-write&connect_timeout=2"
declare -A port probes
run_server() {  # NAME
  "$server" --model tiny=train/checkpoints/rwkv7-passkey --engine.threads 1 --replica.name "$1" --store.path "$store" \
    --store.postgres.statement_timeout 5s --replica.lease_ttl 6s --replica.lease_renew 2s --drain.pre_stop_delay 2s \
    --listen.address "127.0.0.1:${port[$1]}" --listen.metrics_address "127.0.0.1:${probes[$1]}" \
    >>"$folder/server-$1.out" 2>>"$folder/server-$1.log" &
  pids[server-$1]=$!
}
for name in a b c; do
  port[$name]=$(free_port) probes[$name]=$(free_port)
  run_server $name
done
for name in a b c; do
  until grep -q '^listening' "$folder/server-$name.out" 2>/dev/null; do
    kill -0 "${pids[server-$name]}" 2>/dev/null || { tail -5 "$folder/server-$name.log" >&2; exit 1; }
    sleep 0.1
  done
done
say "servers a, b, c on ports ${port[a]}, ${port[b]}, ${port[c]}"

# ---- HAProxy: deploy/haproxy.cfg with a third server; Prometheus: deploy/prometheus with these targets
front=$(free_port)
{ cat deploy/haproxy.cfg; echo "    server c 127.0.0.1:${port[c]} check check-proto h1 port ${probes[c]}"; } >"$folder/haproxy.cfg"
BIND=127.0.0.1:$front SERVER_A=127.0.0.1:${port[a]} PROBES_A=${probes[a]} SERVER_B=127.0.0.1:${port[b]} PROBES_B=${probes[b]} \
  haproxy -db -f "$folder/haproxy.cfg" >"$folder/haproxy.log" 2>&1 &
pids[haproxy]=$!
watch=$(free_port)
mkdir "$folder/prometheus"
cp deploy/prometheus/alerts.yaml "$folder/prometheus/"
sed "s|\"127.0.0.1:7448\"|\"127.0.0.1:${probes[a]}\", \"127.0.0.1:${probes[b]}\", \"127.0.0.1:${probes[c]}\"|; s/scrape_interval: 5s/scrape_interval: 1s/; s/evaluation_interval: 15s/evaluation_interval: 1s/" \
  deploy/prometheus/prometheus.yaml >"$folder/prometheus/prometheus.yaml"
prometheus --config.file="$folder/prometheus/prometheus.yaml" --storage.tsdb.path="$folder/prometheus/data" \
  --web.listen-address="127.0.0.1:$watch" >"$folder/prometheus.log" 2>&1 &
pids[prometheus]=$!
say "HAProxy on port $front, Prometheus on http://127.0.0.1:$watch"

# ---- conversations: each session's client notes what it was told
mneme() { "$cli" --server "127.0.0.1:$front" --connect-timeout 5 "$@"; }
for i in $(seq "$sessions"); do mneme sessions create "demo-$i" >/dev/null; done
converse() {  # SESSION
  : >"$folder/$1.told" >"$folder/$1.refused"
  until [[ -e $folder/stop-talking ]]; do
    if mneme generate -s "$1" --queue --max-tokens 4000 --ignore-eos --json "and then" >"$folder/$1.turn" 2>"$folder/$1.err"; then
      # Its last line is the Final: committed, version, position.
      tail -1 "$folder/$1.turn" >>"$folder/$1.told"
    else
      cat "$folder/$1.err" >>"$folder/$1.refused"
    fi
  done
}
for i in $(seq "$sessions"); do converse "demo-$i" & talkers+=($!); done
told() { cat "$folder"/demo-*.told | wc -l; }
say "$sessions conversations"
sleep 10
say "$(told) turns acknowledged; server b is killed"
kill -KILL "${pids[server-b]}"
wait "${pids[server-b]}" 2>/dev/null || true
sleep 10
say "$(told); server b is started again, server c stands still for 12 s: twice as long as a lease"
run_server b
kill -STOP "${pids[server-c]}"
sleep 12
kill -CONT "${pids[server-c]}"
say "$(told); server c goes on; the database is killed"
sleep 5
as_postgres "$postgres/pg_ctl" -D "$folder/primary" -m immediate stop >/dev/null
sleep 3
say "$(told); the standby is promoted"
# Nobody stands by for it now; a real one gets its next standby here.
as_postgres "$postgres/pg_ctl" -D "$folder/standby" -w promote >/dev/null
sql "$standby_port" "ALTER SYSTEM SET synchronous_standby_names = ''"
sql "$standby_port" "SELECT pg_reload_conf()" >/dev/null
sleep 15
touch "$folder/stop-talking"
wait "${talkers[@]}"
say "$(told) turns acknowledged in all"

# ---- what was told, and what is there
code=0
python3 - "$folder" "$sessions" <<END || code=1
import collections, json, subprocess, sys
folder, sessions = sys.argv[1], int(sys.argv[2])
turns = lost = doubled = 0
refused = collections.Counter()
for i in range(1, sessions + 1):
    name = f"demo-{i}"
    told = [json.loads(line)["final"] for line in open(f"{folder}/{name}.told") if line.strip()]
    versions = [int(t["version"]) for t in told if t.get("committed")]
    turns += len(versions)
    doubled += len(versions) - len(set(versions))
    got = subprocess.run(["$cli", "--server", "127.0.0.1:$front", "--json", "sessions", "get", name],
                         capture_output=True, text=True, check=True).stdout
    session = json.loads(got)
    version, position = int(session["version"]), int(session["position_tokens"])
    for t in told:
        if int(t["version"]) > version: lost += 1
    if told and int(told[-1]["version"]) == version and int(told[-1]["position_tokens"]) != position: lost += 1
    for line in open(f"{folder}/{name}.refused"):
        if line.strip(): refused[json.loads(line)["error"]["reason"] or "UNAVAILABLE"] += 1
print(f"acknowledged turns          {turns}")
print(f"of them missing             {lost}")
print(f"versions told twice         {doubled}")
print(f"calls that failed           {refused.total()}: " + ", ".join(f"{n} {r}" for r, n in sorted(refused.items())))
sys.exit(1 if lost or doubled or not turns else 0)
END
python3 - "$watch" "${probes[@]}" <<'END'
import json, re, sys, urllib.parse, urllib.request
def get(port, path): return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read().decode()
pages = [get(port, "/metrics") for port in sys.argv[2:]]
taken_over = [re.search(r'^mneme_lease_events_total{event="taken_over"} (\d+)', page, re.M)[1] for page in pages]
print("leases of silent servers taken over", sum(map(int, taken_over)))
query = 'count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[5m]))'
fired = json.loads(get(sys.argv[1], "/api/v1/query?query=" + urllib.parse.quote(query)))["data"]["result"]
print("alerts that fired:", ", ".join(sorted(f["metric"]["alertname"] for f in fired)) or "none")
END
if $keep; then read -r -p "Enter ends it. HAProxy: 127.0.0.1:$front, Prometheus: http://127.0.0.1:$watch " _; fi
ended=well
exit $code

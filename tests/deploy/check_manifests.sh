#!/usr/bin/env bash
# deploy/'s manifests against the schemas of those who read them: Kubernetes' own, by kubernetes-validate; Compose's, by
# check-jsonschema; and what HAProxy and Prometheus say of their files.
#   tests/deploy/check_manifests.sh TOOLS      TOOLS: a folder for the two, which pip fetches the first time
set -euo pipefail
cd "$(dirname "$0")/../../deploy"
tools=$1
if [[ ! -x $tools/bin/kubernetes-validate || ! -x $tools/bin/check-jsonschema ]]; then
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet kubernetes-validate==1.31.0 check-jsonschema==0.39.0
fi

# Custom resources are not Kubernetes' own.
for file in kubernetes/*.yaml; do
  case $file in
    */kustomization.yaml) "$tools/bin/python" - "$file" <<'END' ;;
import os, sys, yaml
parts = yaml.safe_load(open(sys.argv[1]))["resources"]
here = os.path.dirname(sys.argv[1])
missing = [p for p in parts if not os.path.exists(f"{here}/{p}")]
unlisted = [f for f in os.listdir(here) if f not in parts and f != "kustomization.yaml"]
sys.exit(f"kustomization.yaml: missing {missing}, not listed {unlisted}" if missing or unlisted else 0)
END
    */servicemonitor.yaml) "$tools/bin/python" -c 'import sys, yaml; assert yaml.safe_load(open(sys.argv[1]))["spec"]["endpoints"][0]["port"] == "metrics"' "$file" ;;
    *) "$tools/bin/kubernetes-validate" --strict "$file" ;;
  esac
done
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
PATH=$PATH:/usr/sbin haproxy -c -q -f compose/haproxy.cfg
promtool check config --syntax-only compose/prometheus.yaml >/dev/null
bash -n compose/replication.sh compose/standby.sh
# What is mounted is there, and what the files call each other is what they are called.
"$tools/bin/python" - <<'END'
import os, yaml
compose = yaml.safe_load(open("compose.yaml"))
services = compose["services"]
for name, service in services.items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert os.path.exists(source), f"{name} mounts {source}, which is not there"
servers = sorted(s for s in services if s.startswith("mneme-"))
proxied = sorted(line.split()[2].split(":")[0] for line in open("compose/haproxy.cfg") if line.strip().startswith("server "))
scraped = yaml.safe_load(open("compose/prometheus.yaml"))["scrape_configs"][0]["static_configs"][0]["targets"]
assert servers == proxied == sorted(t.split(":")[0] for t in scraped), (servers, proxied, scraped)
END
echo "manifests: fine"

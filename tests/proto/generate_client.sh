#!/usr/bin/env bash
# protoc makes a client from the .proto files as they are, with no option for packages or paths, and
# what it makes compiles (go, python) or is there (java, csharp).
#   generate_client.sh go|python|java|csharp PROTOC OUT
set -euo pipefail
language=$1 protoc=$2 out=$3
source=$(cd "$(dirname "$0")/../../proto" && pwd)
rm -rf "$out"
mkdir -p "$out/src"

need() {
  command -v "$1" || { echo "$1 is missing: run deploy/install_packages.sh test" >&2; exit 1; }
}
generate() { "$protoc" -I"$source" "$@" "$source"/mneme/v1/*.proto; }

case $language in
  go)
    need protoc-gen-go && need protoc-gen-go-grpc && need go
    generate --go_out="$out/src" --go-grpc_out="$out/src"
    mkdir "$out/src/ask"
    cat >"$out/src/ask/main.go" <<'GO'
package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	mnemev1 "mneme/v1"
)

func main() {
	connection, err := grpc.Dial("127.0.0.1:7447", grpc.WithInsecure())
	if err != nil {
		panic(err)
	}
	request := &mnemev1.GenerateRequest{Input: &mnemev1.GenerateRequest_Text{Text: "Hello"}}
	answer, err := mnemev1.NewGenerationClient(connection).Complete(context.Background(), request)
	fmt.Println(answer.GetText(), err)
}
GO
    # Debian's packages are sources in a GOPATH.
    GO111MODULE=off GOPATH=$out:/usr/share/gocode GOCACHE=$out/cache GOFLAGS='' \
      go build -o "$out/ask" ask
    ;;
  python)
    # Debian's interpreter, which has Debian's packages.
    plugin=$(need grpc_python_plugin)
    generate --python_out="$out" --plugin=protoc-gen-grpc="$plugin" --grpc_out="$out"
    cd "$out"
    /usr/bin/python3 -c '
from mneme.v1 import generation_pb2, models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
assert sessions_pb2_grpc.SessionsStub and models_pb2_grpc.ModelsStub
part = sessions_pb2.TranscriptPart(role=sessions_pb2.TranscriptPart.USER, text="Hello")
assert sessions_pb2.TranscriptPart.FromString(part.SerializeToString()) == part
sampling = generation_pb2.Sampling(top_k=0)
assert sampling.HasField("top_k") and not sampling.HasField("min_p")'
    ;;
  java)
    generate --java_out="$out"
    test -f "$out/mneme/v1/GenerateRequest.java"
    ;;
  csharp)
    generate --csharp_out="$out"
    grep -q '^namespace Mneme.V1' "$out/Generation.cs"
    ;;
esac
